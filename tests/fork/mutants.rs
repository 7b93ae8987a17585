//! Workers that send what was a valid stream of frames until something changed it.

use std::time::{Duration, Instant};

use tokio::task::JoinSet;
use tokio_run_in_process::{Error, Stdio, Zygote};

use crate::{
    hostile_sockets::{Heartbeat, header, peak, say},
    oracle::undisturbed_with,
    tools::Random,
};

crate::cases![; 3600 => d43_mutated_frames_of_real_workers];

type Value = (u64, u64, String);

fn value(index: u64) -> Value {
    let first = index.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (first, !first, format!("{first:x}"))
}

/// What a stream says, read in the plainest way: the value of its first frame, if it has one.
fn said(stream: &[u8]) -> Option<Value> {
    let (head, rest) = stream.split_at_checked(16)?;
    let length = u64::from_le_bytes(head[8..].try_into().unwrap());
    let mut body = rest.get(..usize::try_from(length).ok()?)?;
    let (first, second, size) = (take(&mut body)?, take(&mut body)?, take(&mut body)?);
    let text = String::from_utf8(body.to_vec()).ok()?;
    (head[0] == 2 && size == text.len() as u64).then_some((first, second, text))
}

fn take(bytes: &mut &[u8]) -> Option<u64> {
    let (tag, rest) = bytes.split_first()?;
    *bytes = rest;
    let size = match tag {
        251 => 2,
        252 => 4,
        253 => 8,
        254.. => return None,
        &n => return Some(n.into()),
    };
    let (number, rest) = bytes.split_at_checked(size)?;
    *bytes = rest;
    let mut wide = [0; 8];
    wide[..size].copy_from_slice(number);
    Some(u64::from_le_bytes(wide))
}

/// A number of the codec's, of the longest kind.
fn number(n: u64) -> Vec<u8> {
    [&[253][..], &n.to_le_bytes()].concat()
}

fn valid(index: u64, kind: u64) -> Vec<u8> {
    let (first, second, text) = value(index);
    let body = match kind {
        2 => [number(first), number(second), vec![u8::try_from(text.len()).unwrap()], text.into_bytes()].concat(),
        4 => Vec::new(),
        _ => (0..40).map(|n| n % 7).collect(),
    };
    [&header(kind, body.len() as u64)[..], &body].concat()
}

/// What a worker sends: bytes, and into how large pieces it cuts them.
fn mutant(index: u64, kind: u64, seed: u64) -> (Vec<u8>, usize) {
    let mut random = Random::new(seed);
    let mut bytes = valid(index, kind);
    for _ in 0..random.below(3) {
        let at = usize::try_from(random.below(bytes.len() as u64 + 1)).unwrap();
        match random.below(7) {
            0 if at < bytes.len() => bytes[at] ^= 1 << random.below(8),
            1 => bytes.truncate(at),
            2 => bytes.insert(at, u8::try_from(random.below(256)).unwrap()),
            3 if bytes.len() >= 16 => {
                let lengths = [0, 1, 1 << 20, (1 << 20) + 1, 1 << 30, (1 << 30) + 1, 1 << 63, u64::MAX];
                let length = lengths[usize::try_from(random.below(8)).unwrap()];
                bytes[8..16].copy_from_slice(&length.to_le_bytes());
            }
            4 => bytes.rotate_left(at),
            5 => bytes.splice(0..0, header(1, 0)).for_each(drop),
            _ => bytes.extend_from_within(at..),
        }
    }
    (bytes, 1 + usize::try_from(random.below(100)).unwrap())
}

fn sends(index: u64, kind: u64, seed: u64) -> Value {
    let (bytes, piece) = mutant(index, kind, seed);
    bytes.chunks(piece).for_each(say);
    // SAFETY: ends the process, without a word of the library's.
    unsafe { libc::_exit(9) }
}

/// Two thousand; `MUTANTS=100000` by hand.
fn d43_mutated_frames_of_real_workers() {
    let many: u64 = std::env::var("MUTANTS").map_or(2000, |many| many.parse().unwrap());
    undisturbed_with(Zygote::builder().max_processes(16), |zygote| async move {
        let task = zygote.task().stderr(Stdio::null());
        let (mut seen, mut tasks) = (std::collections::BTreeMap::<&str, u64>::new(), JoinSet::new());
        let (before, heart, start) = (peak(), Heartbeat::start(), Instant::now());
        for index in 0..many {
            if tasks.len() == 24 {
                *seen.entry(tasks.join_next().await.unwrap().unwrap()).or_default() += 1;
            }
            let task = task.clone();
            tasks.spawn(async move {
                let arguments = (index, 2 + index % 4, index);
                // In either way only what ends the worker ends the wait.
                let outcome = async {
                    match index % 3 {
                        0 => task.open_blocking(sends, arguments).await?.wait().await,
                        _ => task.run_blocking(sends, arguments).await,
                    }
                };
                match tokio::time::timeout(Duration::from_secs(60), outcome).await.expect("an outcome") {
                    Ok(found) => {
                        assert_eq!(Some(found), said(&mutant(index, 2 + index % 4, index).0), "{index}");
                        "values"
                    }
                    Err(Error::Protocol { .. }) => "breaches",
                    Err(Error::Exited { code: 9, .. }) => "exits",
                    Err(Error::Decode { .. }) => "undecodable",
                    Err(Error::Cancelled { .. }) => "cancelled",
                    Err(Error::Panicked { .. }) => "panics",
                    Err(Error::Spawn { .. } | Error::TooLarge { .. } | Error::TimedOut { .. }) => "failures",
                    Err(error) => panic!("{index}: {error:?}"),
                }
            });
        }
        while let Some(what) = tasks.join_next().await {
            *seen.entry(what.unwrap()).or_default() += 1;
        }
        let (took, gap, grown) = (start.elapsed(), heart.end().await, peak() - before);
        println!("{seen:?} in {took:?}; longest gap {gap:?}; {grown} kB more at the peak");
        for what in ["values", "breaches", "exits", "cancelled"] {
            assert!(seen.get(what).is_some_and(|&count| count > many / 100), "{what}: {seen:?}");
        }
        assert!(grown < 64 << 10, "{grown} kB");
        assert!(gap < Duration::from_secs(2), "{gap:?}");
    });
}

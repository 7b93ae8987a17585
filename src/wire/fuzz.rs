//! What a fuzzer feeds: bytes as a hostile worker could send them, read as the parent reads them.
//!
//! Each function takes any bytes, and panics if one of its promises does not hold. Fuzzers call them by
//! [`test_support`](crate::test_support) (`ci/fuzz.sh`); the tests below replay what fuzzers found worth keeping.

use std::{
    borrow::Cow,
    collections::{BTreeMap, HashMap, LinkedList},
    ffi::CString,
    fmt::Debug,
    net::SocketAddr,
    num::NonZeroU32,
    path::PathBuf,
    time::{Duration, SystemTime},
};

use serde::{Deserialize, Serialize, de::DeserializeOwned};

use super::{
    frame::{Frame, Reader},
    payload,
    rope::Rope,
};
use crate::model::{Failure, PanicReport, Terminal};

#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct List {
    value: u8,
    next: Option<Box<List>>,
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
enum Json {
    Null,
    Bool(bool),
    Number(i64),
    Text(String),
    Array(Vec<Json>),
    Object(BTreeMap<String, Json>),
    Pair { left: Box<Json>, right: Box<Json> },
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Large {
    kids: HashMap<u16, Large>,
    texts: ([String; 4], [u64; 4]),
}

/// A value that decodes is a value: it encodes, and is the same again.
fn round<T: DeserializeOwned + Serialize + PartialEq + Debug>(bytes: &[u8]) {
    let Ok(value) = payload::decode::<T>(bytes) else { return };
    let mut out = Rope::default();
    payload::encode_into(&value, &mut out, u64::MAX).expect("what decodes encodes");
    let again = payload::decode::<T>(&out.into_bytes()).expect("what encodes decodes");
    assert!(value == again, "{value:?} became {again:?}");
}

macro_rules! one_of {
    ($choice:expr, $bytes:expr; $($type:ty,)*) => {
        let all: &[fn(&[u8])] = &[$(round::<$type>),*];
        all[usize::from($choice) % all.len()]($bytes);
    };
}

/// The first byte says of which type the others are.
pub(crate) fn value(input: &[u8]) {
    let Some((&choice, bytes)) = input.split_first() else { return };
    one_of! { choice, bytes;
        List,
        Json,
        Large,
        String,
        Vec<u8>,
        Vec<String>,
        HashMap<String, Vec<Option<i32>>>,
        Vec<()>,
        LinkedList<[(); 3]>,
        BTreeMap<(), u8>,
        (u8, u16, u32, u64, u128, i8, i16, i32, i64, i128, bool, char),
        Vec<Result<char, Box<str>>>,
        Option<Option<Vec<Vec<Vec<bool>>>>>,
        (PathBuf, CString, Cow<'static, str>, SocketAddr),
        Vec<(Duration, SystemTime, NonZeroU32)>,
        PanicReport,
        Failure,
        Vec<[[(u8, ()); 8]; 2]>,
    }
}

const LIMIT: u64 = 1 << 16;

fn read(bytes: &[u8], quiet: bool, piece: usize) -> Result<Vec<Frame>, String> {
    let mut reader = if quiet { Reader::of_terminal(LIMIT) } else { Reader::new(LIMIT) };
    let (mut frames, mut rest) = (Vec::new(), bytes);
    while !rest.is_empty() {
        let (mut now, later) = rest.split_at(piece.min(rest.len()));
        rest = later;
        while let Some(frame) = reader.next(&mut now)? {
            frames.push(frame);
        }
        if reader.is_filling() && !rest.is_empty() {
            reader
                .fill(|body, most| {
                    let (head, later) = rest.split_at(most.min(piece).min(rest.len()));
                    body.extend_from_slice(head);
                    rest = later;
                    Ok(head.len())
                })
                .expect("it reads from memory");
            while let Some(frame) = reader.next(&mut &[][..])? {
                frames.push(frame);
            }
        }
    }
    Ok(frames)
}

/// The first byte says in what pieces the others come, and whether the job is a quiet one. The pieces change nothing.
pub(crate) fn frames(input: &[u8]) {
    let Some((&how, bytes)) = input.split_first() else { return };
    let (quiet, piece) = (how & 1 == 1, usize::from(how >> 1) + 1);
    let frames = read(bytes, quiet, piece);
    assert_eq!(frames, read(bytes, quiet, usize::MAX));
    let Ok(frames) = frames else { return };
    assert!(frames.len() <= 2);
    for frame in frames {
        match frame {
            Frame::Executing { .. } => assert!(!quiet),
            Frame::Terminal(Terminal::Returned(body), _) => {
                assert!(body.len() as u64 <= LIMIT);
                round::<Json>(&body);
            }
            Frame::Terminal(..) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    fn replay(target: &str, feed: fn(&[u8])) {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(target);
        // A package from a registry has no corpus.
        let Ok(entries) = fs::read_dir(folder) else { return };
        let mut count = 0;
        for entry in entries {
            feed(&fs::read(entry.unwrap().path()).unwrap());
            count += 1;
        }
        assert!(count > 10, "{count} inputs of {target}");
    }

    #[test]
    fn values_that_a_fuzzer_found() {
        replay("value", super::value);
    }

    #[test]
    fn frames_that_a_fuzzer_found() {
        replay("frames", super::frames);
    }
}

//! Bytes of all sizes, there and back: whole, and within their limits. What takes long is in `large`.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;
use tokio_run_in_process::{
    Bytes, Coded, Error, Fd, Pool, Shared, Task, Zygote, default_zygote, open_in_process, run_blocking_in_process,
    run_in_process,
};

use crate::{
    oracle::{undisturbed, undisturbed_with},
    seed::runtimes,
};

crate::cases![
    many_pieces_in_one_value,
    an_argument_limit_is_exact,
    what_travels_by_descriptor_does_not_count;
    90 => every_size_travels,
    other_types_of_bytes_travel,
];

/// Bytes of which each place is told from every other: a period that fits no buffer, and a number in each megabyte.
pub(crate) fn made(size: usize) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(size);
    while bytes.len() < size {
        let (number, left) = (bytes.len() / SECTION, size - bytes.len());
        bytes.extend_from_slice(&number.to_le_bytes()[..left.min(8)]);
        let end = (number * SECTION + SECTION).min(size);
        while bytes.len() < end {
            let part = part(bytes.len(), end);
            bytes.extend_from_slice(part);
        }
    }
    bytes
}

/// Whether these are `made` bytes.
pub(crate) fn is_made(bytes: &[u8], size: usize) -> bool {
    let section = |(number, section): (usize, &[u8])| {
        let (head, mut rest) = section.split_at(section.len().min(8));
        let (mut at, end) = (number * SECTION + head.len(), number * SECTION + section.len());
        while at < end {
            let part = part(at, end);
            if !rest.starts_with(part) {
                return false;
            }
            rest = &rest[part.len()..];
            at += part.len();
        }
        number.to_le_bytes().starts_with(head)
    };
    bytes.len() == size && bytes.chunks(SECTION).enumerate().all(section)
}

const SECTION: usize = 1 << 20;
const PERIOD: usize = 4093;

fn part(at: usize, end: usize) -> &'static [u8] {
    static PATTERN: [u8; PERIOD] = {
        let (mut pattern, mut n) = ([0; PERIOD], 0);
        while n < PERIOD {
            pattern[n] = (n * 7 + n / 251) as u8;
            n += 1;
        }
        pattern
    };
    let start = at % PERIOD;
    &PATTERN[start..(start + end - at).min(PERIOD)]
}

pub(crate) async fn takes(bytes: Bytes, size: usize) -> bool {
    is_made(&bytes, size)
}

pub(crate) async fn gives(size: usize) -> Bytes {
    made(size).into()
}

pub(crate) async fn echoes(bytes: Bytes) -> Bytes {
    bytes
}

/// The thresholds of both sides, with the headers and lengths that are before the bytes.
fn sizes() -> Vec<usize> {
    let mut sizes = vec![0, 1, 250, 251, 65_535, 65_536, 3 << 20, (5 << 20) + 1];
    for threshold in [2048, 4096, 16 << 10, 64 << 10, 106_432, 128 << 10, 212_992, 256 << 10, 1 << 20] {
        let before = [0, 3, 5, 16, 19, 21, 48, 51, 53, 67, 69];
        sizes.extend(
            before.iter().flat_map(|before| [threshold - before - 1, threshold - before, threshold - before + 1]),
        );
    }
    sizes.sort_unstable();
    sizes.dedup();
    sizes
}

fn every_size_travels() {
    undisturbed(|| async {
        let pool = Pool::builder().workers(1).build().unwrap();
        for (n, size) in sizes().into_iter().enumerate() {
            let bytes = Bytes::from(made(size));
            let came = match n % 4 {
                0 => run_in_process(echoes, bytes.clone()).await,
                1 => open_in_process(echoes, bytes.clone()).await.unwrap().wait().await,
                2 => run_blocking_in_process(|bytes: Bytes| bytes, bytes.clone()).await,
                _ => pool.run(echoes, bytes.clone()).await,
            };
            assert!(came.unwrap() == bytes, "{size}, way {}", n % 4);
            assert!(run_in_process(takes, (bytes.clone(), size)).await.unwrap(), "{size}");
            assert!(is_made(&run_in_process(gives, size).await.unwrap(), size), "{size}");
            assert!(pool.run(takes, (bytes.clone(), size)).await.unwrap(), "{size}");
            assert!(is_made(&pool.run(gives, size).await.unwrap(), size), "{size}");
        }
        drop(pool);
    });
}

fn other_types_of_bytes_travel() {
    undisturbed(|| async {
        for size in [0, 1, 2047, 4096, 16 << 10, (64 << 10) + 1, 212_992, (1 << 20) - 1, (3 << 20) + 7] {
            for (runtime, task) in runtimes(&Task::new()) {
                let came = task.run(async |bytes: bytes::Bytes| bytes, made(size).into()).await.unwrap();
                assert!(is_made(&came, size), "{runtime}, {size}");
                let came = task.run(async |bytes: ByteBuf| bytes, ByteBuf::from(made(size))).await.unwrap();
                assert!(is_made(&came, size), "{runtime}, {size}");
                let came = task.run(async |bytes: Vec<u8>| bytes, made(size)).await.unwrap();
                assert!(is_made(&came, size), "{runtime}, {size}");
                // Encoded alike, so one can be received as another.
                let mixed = async |a: Bytes, b: bytes::Bytes| (ByteBuf::from(a.into_vec()), Bytes::from(b));
                let (a, b) = task.run(mixed, (made(size).into(), made(size).into())).await.unwrap();
                assert!(is_made(&a, size) && is_made(&b, size), "{runtime}, {size}");
            }
        }
    });
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Album {
    title: String,
    cover: Option<Bytes>,
    pages: Vec<Bytes>,
    notes: BTreeMap<u32, Bytes>,
    nested: Option<Box<Album>>,
    end: u8,
}

impl Album {
    /// Pieces that are sent from where they are, with smaller ones and other values in between.
    pub(crate) fn of(count: usize) -> Self {
        let piece = |n: usize| Bytes::from(made([16 << 10, 100, (16 << 10) + 1, 0, 20_000, (16 << 10) - 1][n % 6] + n));
        Self {
            title: "x".repeat(count),
            cover: Some(made(300_000).into()),
            pages: (0..count).map(piece).collect(),
            notes: (0..count).map(|n| (n as u32, piece(n + 3))).collect(),
            nested: Some(Box::new(Self { cover: Some(piece(2)), end: 5, ..Self::default() })),
            end: 7,
        }
    }
}

fn many_pieces_in_one_value() {
    undisturbed(|| async {
        let pool = Pool::builder().workers(1).build().unwrap();
        for count in [1, 7, 8, 9, 200] {
            let album = Album::of(count);
            for (runtime, task) in runtimes(&Task::new()) {
                assert!(
                    task.run(async |album: Album| album, album.clone()).await.unwrap() == album,
                    "{runtime} {count}"
                );
            }
            assert!(run_blocking_in_process(|album: Album| album, album.clone()).await.unwrap() == album, "{count}");
            assert!(pool.run(async |album: Album| album, album.clone()).await.unwrap() == album, "{count}");
        }
        // The same bytes many times over: each goes by itself.
        let piece = Bytes::from(made(16 << 10));
        let pieces = vec![piece.clone(); 1000];
        let came = run_in_process(async |pieces: Vec<Bytes>| pieces, pieces).await.unwrap();
        assert!(came.len() == 1000 && came.iter().all(|came| *came == piece));
    });
}

/// The error of arguments that are too large, of which nothing was started.
fn too_large(error: &Error, size: u64, limit: u64) {
    let Error::TooLarge { what: Coded::Arguments, size: told, limit: allowed, task, .. } = error else {
        panic!("{error:?}")
    };
    assert_eq!((*told, *allowed, task.pid()), (size, limit, None));
    assert!(error.to_string().contains(&format!("{size} bytes where argument_limit allows {limit}")), "{error}");
    assert!(!error.is_retryable());
}

fn an_argument_limit_is_exact() {
    undisturbed(|| async {
        let started = || default_zygote().unwrap().metrics().started;
        let length = async |bytes: Bytes| bytes.len();
        for (n, size) in [(0, 1), (250, 251), (251, 254), (16_384, 16_387), (65_536, 65_541), (300_000, 300_005)] {
            let bytes = Bytes::from(made(n));
            for (runtime, task) in runtimes(&Task::new().argument_limit(size)) {
                assert_eq!(task.run(length, bytes.clone()).await.unwrap(), n, "{runtime}");
            }
            let before = started();
            let task = Task::new().argument_limit(size - 1);
            too_large(&task.run(length, bytes.clone()).await.unwrap_err(), size, size - 1);
            too_large(&task.open(length, bytes.clone()).await.unwrap_err(), size, size - 1);
            let plain = |bytes: Bytes| bytes.len();
            too_large(&task.run_blocking(plain, bytes.clone()).await.unwrap_err(), size, size - 1);
            too_large(&task.open_blocking(plain, bytes).await.unwrap_err(), size, size - 1);
            assert_eq!(started(), before, "no process was started for it");
        }
        assert_eq!(Task::new().argument_limit(0).run(async || 5, ()).await.unwrap(), 5);
        let error = Task::new().argument_limit(0).run(async |n: u8| n, 5).await.unwrap_err();
        too_large(&error, 1, 0);
        // It is no limit of the result.
        let came = Task::new().argument_limit(9).run(gives, 1 << 20).await.unwrap();
        assert!(is_made(&came, 1 << 20));
    });
    undisturbed_with(Zygote::builder().argument_limit(100), |zygote| async move {
        let length = async |bytes: Bytes| bytes.len();
        assert_eq!(zygote.run_in_process(length, vec![1; 99].into()).await.unwrap(), 99);
        too_large(&zygote.run_in_process(length, vec![1; 100].into()).await.unwrap_err(), 101, 100);
        let other = zygote.task().argument_limit(101);
        assert_eq!(other.run(length, vec![1; 100].into()).await.unwrap(), 100, "the task's own wins");
        let pool = zygote.pool().workers(1).build().unwrap();
        assert_eq!(pool.run(length, vec![1; 99].into()).await.unwrap(), 99);
        too_large(&pool.run(length, vec![1; 100].into()).await.unwrap_err(), 101, 100);
        drop(pool);
    });
}

fn what_travels_by_descriptor_does_not_count() {
    undisturbed(|| async {
        let shared = Shared::new(made(100_000)).unwrap();
        let file = Fd::new(std::fs::File::open("/dev/null").unwrap()).unwrap();
        let task = Task::new().argument_limit(10);
        let look = async |shared: Shared, file: Fd<std::fs::File>| {
            is_made(&shared, 100_000) && file.into_inner().unwrap().metadata().is_ok()
        };
        assert!(task.run(look, (shared, file)).await.unwrap());
    });
}

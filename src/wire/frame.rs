//! What a worker sends on its job socket: `Executing` once, unless its job is a quiet one, then exactly one terminal
//! frame.
//!
//! ```text
//! 0     1     8        16
//! | tag | age | length | body |
//! ```
//!
//! The age of a task at its terminal frame is the time since it began, in nanoseconds; 0 if, and only if, it did not.
//! With `Executing` the worker's pid is there, which it says before anything of the user's runs: for when no zygote is
//! left that knows it.
//!
//! These bytes are input. The length is checked against the limit of its kind before anything is allocated, and memory
//! grows only as bytes arrive. What follows the terminal frame is not looked at: the first complete one decides.

use std::{io, num::NonZeroU32, time::Duration};

use bytes::Bytes;

use super::{Fields, payload, rope::Rope};
use crate::model::{Failure, PanicReport, Terminal};

/// Size of a frame's header.
pub(crate) const HEADER_SIZE: usize = 16;
/// Largest body of a frame that is not a result: a bounded panic report fits in with room to spare.
const MAX_NOTE: u64 = 1 << 20;

/// Rather than over a buffer, so much goes to its place at once.
const LARGE: u64 = 16 << 10;

const KIND_BITS: u32 = 8;
/// Two years.
const MAX_AGE: u64 = u64::MAX >> KIND_BITS;

const EXECUTING: u64 = 1;
const RETURNED: u64 = 2;
const PANICKED: u64 = 3;
const CANCELLED: u64 = 4;
const FAILED: u64 = 5;

/// A frame's header.
pub(crate) fn header(tag: Tag, length: usize, age: Duration) -> [u8; HEADER_SIZE] {
    let mut bytes = [0; HEADER_SIZE];
    let age = u64::try_from(age.as_nanos()).map_or(MAX_AGE, |age| age.min(MAX_AGE));
    bytes[0..8].copy_from_slice(&((age << KIND_BITS) | tag as u64).to_le_bytes());
    bytes[8..16].copy_from_slice(&(length as u64).to_le_bytes());
    bytes
}

/// The whole frame `Executing`.
pub(crate) fn executing(pid: i32) -> [u8; HEADER_SIZE] {
    header(Tag::Executing, 0, Duration::from_nanos(pid.unsigned_abs().into()))
}

/// The kinds of frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u64)]
pub(crate) enum Tag {
    Executing = EXECUTING,
    Returned = RETURNED,
    Panicked = PANICKED,
    Cancelled = CANCELLED,
    Failed = FAILED,
}

/// The header and body of a terminal frame. The body of a result is the bytes themselves, uncopied.
pub(crate) fn encode(terminal: Terminal<Rope>, age: Duration) -> ([u8; HEADER_SIZE], Rope) {
    let note = |tag: Tag, note: &dyn Fn(&mut Rope)| {
        let mut body = Rope::default();
        note(&mut body);
        (header(tag, body.len(), age), body)
    };
    match terminal {
        Terminal::Returned(body) => (header(Tag::Returned, body.len(), age), body),
        Terminal::Cancelled => (header(Tag::Cancelled, 0, age), Rope::default()),
        Terminal::Panicked(report) => note(Tag::Panicked, &|body| encode_note(&*report, body)),
        Terminal::Failed(failure) => note(Tag::Failed, &|body| encode_note(&failure, body)),
    }
}

fn encode_note(note: &impl serde::Serialize, body: &mut Rope) {
    // Both notes are plain data of ours and bounded where they are made; a failure here has no one to tell.
    let _ = payload::encode_into(note, body, MAX_NOTE);
}

/// What the reader found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Frame {
    /// By its own word its process has this pid.
    Executing { pid: Option<NonZeroU32> },
    /// The last one, and the task's age.
    Terminal(Terminal<Bytes>, Duration),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Expects {
    /// `Executing`, or `Failed` if the worker could not be set up.
    Executing,
    Terminal,
    Nothing,
}

/// Puts frames together from bytes, in whatever pieces they come.
#[derive(Debug)]
pub(crate) struct Reader {
    expects: Expects,
    result_limit: u64,
    header: [u8; HEADER_SIZE],
    filled: usize,
    tag: Option<Tag>,
    age: Duration,
    body: Vec<u8>,
    missing: u64,
}

impl Reader {
    pub(crate) fn new(result_limit: u64) -> Self {
        Self {
            expects: Expects::Executing,
            result_limit,
            header: [0; HEADER_SIZE],
            filled: 0,
            tag: None,
            age: Duration::ZERO,
            body: Vec::new(),
            missing: 0,
        }
    }

    /// For a quiet job, and for each job on the line of a pool: there is a terminal frame only.
    pub(crate) fn of_terminal(result_limit: u64) -> Self {
        Self { expects: Expects::Terminal, ..Self::new(result_limit) }
    }

    /// Takes the next frame out of `bytes`, which moves on. `None`: more bytes are needed, or none are expected.
    pub(crate) fn next(&mut self, bytes: &mut &[u8]) -> Result<Option<Frame>, String> {
        if self.expects == Expects::Nothing {
            *bytes = &[];
            return Ok(None);
        }
        let tag = match self.tag {
            Some(tag) => tag,
            None => {
                let take = bytes.len().min(HEADER_SIZE - self.filled);
                let (head, rest) = bytes.split_at(take);
                self.header[self.filled..self.filled + take].copy_from_slice(head);
                self.filled += take;
                *bytes = rest;
                if self.filled < HEADER_SIZE {
                    return Ok(None);
                }
                let (tag, age, length) = self.check_header()?;
                (self.missing, self.age) = (length, age);
                self.tag = Some(tag);
                tag
            }
        };
        let take = usize::try_from(self.missing).map_or(bytes.len(), |missing| bytes.len().min(missing));
        let (body, rest) = bytes.split_at(take);
        self.body.extend_from_slice(body);
        self.missing -= take as u64;
        *bytes = rest;
        if self.missing > 0 {
            return Ok(None);
        }
        (self.tag, self.filled) = (None, 0);
        let body = std::mem::take(&mut self.body);
        let frame = match tag {
            Tag::Executing => {
                self.expects = Expects::Terminal;
                let pid = u32::try_from(self.age.as_nanos()).ok().and_then(NonZeroU32::new);
                return Ok(Some(Frame::Executing { pid }));
            }
            Tag::Returned => Terminal::Returned(body.into()),
            Tag::Cancelled => Terminal::Cancelled,
            Tag::Panicked => {
                let report: PanicReport = note(&body)?;
                Terminal::Panicked(Box::new(report.bounded()))
            }
            Tag::Failed => Terminal::Failed(note::<Failure>(&body)?),
        };
        self.expects = Expects::Nothing;
        Ok(Some(Frame::Terminal(frame, self.age)))
    }

    /// Whether so much of a body is still to come that it should be read by [`fill`](Self::fill).
    pub(crate) fn is_filling(&self) -> bool {
        self.missing >= LARGE
    }

    /// Lets `read` append to the body: so many bytes at most. Then [`next`](Self::next) goes on, with no bytes if `read` had
    /// none to spare.
    ///
    /// Memory is asked for as bytes arrive. From a megabyte on all of it is, so that it need not move; what was not written
    /// yet is no memory to the kernel.
    pub(crate) fn fill(&mut self, read: impl FnOnce(&mut Vec<u8>, usize) -> io::Result<usize>) -> io::Result<usize> {
        let missing = usize::try_from(self.missing).unwrap_or(usize::MAX);
        let here = self.body.len();
        let most = if here >= 1 << 20 { missing } else { missing.min(here.max(256 << 10)) };
        let n = read(&mut self.body, most)?;
        self.missing -= n as u64;
        Ok(n)
    }

    fn check_header(&self) -> Result<(Tag, Duration, u64), String> {
        let mut fields = Fields(&self.header);
        let (first, length) = (fields.u64(), fields.u64());
        let (tag, limit) = match first & !(MAX_AGE << KIND_BITS) {
            EXECUTING => (Tag::Executing, 0),
            RETURNED => (Tag::Returned, self.result_limit),
            PANICKED => (Tag::Panicked, MAX_NOTE),
            CANCELLED => (Tag::Cancelled, 0),
            FAILED => (Tag::Failed, MAX_NOTE),
            kind => return Err(format!("a frame of the unknown kind {kind:#x}")),
        };
        match (self.expects, tag) {
            (Expects::Executing, Tag::Executing | Tag::Failed) => {}
            (Expects::Terminal, Tag::Returned | Tag::Panicked | Tag::Cancelled | Tag::Failed) => {}
            (expects, tag) => return Err(format!("a frame {tag:?} where {expects:?} was expected")),
        }
        if length > limit {
            return Err(format!("a frame {tag:?} of {length} bytes where {limit} are allowed"));
        }
        Ok((tag, Duration::from_nanos(first >> KIND_BITS), length))
    }
}

fn note<T: serde::de::DeserializeOwned>(body: &[u8]) -> Result<T, String> {
    payload::decode(body).map_err(|e| format!("a report that does not decode: {e:?}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const AGE: Duration = Duration::from_nanos(MAX_AGE - 1);

    fn stream(terminal: Terminal<Rope>) -> Vec<u8> {
        let (head, body) = encode(terminal, AGE);
        [&executing(42)[..], &head, &body.into_bytes()].concat()
    }

    fn read(bytes: &[u8], piece: usize, limit: u64) -> Result<Vec<Frame>, String> {
        let mut reader = Reader::new(limit);
        let mut frames = Vec::new();
        for mut chunk in bytes.chunks(piece) {
            while let Some(frame) = reader.next(&mut chunk)? {
                frames.push(frame);
            }
        }
        Ok(frames)
    }

    #[test]
    fn frames_survive_in_pieces_of_any_size() {
        let report = PanicReport::new("no".into(), Some("a.rs:1:2".into()), None, vec![1, 2]);
        for terminal in [
            Terminal::Returned(Rope::default()),
            Terminal::Returned(vec![5; 1000].into()),
            Terminal::Cancelled,
            Terminal::Panicked(Box::new(report)),
            Terminal::Failed(Failure::Decode("bad".into())),
        ] {
            let mut bytes = stream(terminal.clone());
            bytes.extend_from_slice(b"junk after the last frame is not looked at");
            let read_as = match terminal {
                Terminal::Returned(rope) => Terminal::Returned(rope.into_bytes()),
                Terminal::Panicked(report) => Terminal::Panicked(report),
                Terminal::Cancelled => Terminal::Cancelled,
                Terminal::Failed(failure) => Terminal::Failed(failure),
            };
            for piece in [1, 7, 16, 17, 4096] {
                assert_eq!(
                    read(&bytes, piece, 1000),
                    Ok(vec![Frame::Executing { pid: NonZeroU32::new(42) }, Frame::Terminal(read_as.clone(), AGE)])
                );
            }
        }
    }

    #[test]
    fn a_length_is_checked_before_anything_is_allocated() {
        let mut bytes = stream(Terminal::Cancelled);
        bytes.truncate(HEADER_SIZE);
        bytes.extend_from_slice(&header(Tag::Returned, 101, AGE));
        assert!(read(&bytes, 64, 100).unwrap_err().contains("101 bytes where 100 are allowed"));
        bytes.truncate(HEADER_SIZE);
        bytes.extend_from_slice(&RETURNED.to_le_bytes());
        bytes.extend_from_slice(&u64::MAX.to_le_bytes());
        assert!(read(&bytes, 64, 100).is_err());
        let mut reader = Reader::new(u64::MAX);
        assert_eq!(reader.next(&mut &bytes[..]), Ok(Some(Frame::Executing { pid: NonZeroU32::new(42) })));
        assert_eq!(reader.next(&mut &bytes[HEADER_SIZE..]), Ok(None));
        assert_eq!(reader.body.capacity(), 0);
    }

    #[test]
    fn a_large_body_is_read_to_its_place_in_steps() {
        let size = 3 << 20;
        let mut reader = Reader::of_terminal(size as u64);
        let head = header(Tag::Returned, size, AGE);
        assert_eq!(reader.next(&mut &[&head[..], &[1; 100]].concat()[..]), Ok(None));
        let mut steps = Vec::new();
        while reader.is_filling() {
            let fill = |body: &mut Vec<u8>, most: usize| {
                body.resize(body.len() + most, 1);
                Ok(most)
            };
            steps.push(reader.fill(fill).unwrap());
        }
        assert_eq!(steps[..3], [256 << 10, (256 << 10) + 100, (512 << 10) + 200]);
        assert_eq!(steps.len(), 4, "the rest at once");
        let whole = Terminal::Returned(vec![1; size].into());
        assert_eq!(reader.next(&mut &[][..]), Ok(Some(Frame::Terminal(whole, AGE))));
    }

    #[test]
    fn s20_a_wrong_order_is_an_error() {
        assert!(read(&header(Tag::Returned, 0, AGE), 64, 100).unwrap_err().contains("Returned where Executing"));
        assert!(read(&header(Tag::Cancelled, 0, AGE), 64, 100).is_err());
        let twice = [header(Tag::Executing, 0, Duration::ZERO), header(Tag::Executing, 0, Duration::ZERO)].concat();
        assert!(read(&twice, 64, 100).unwrap_err().contains("Executing where Terminal"));
        assert!(read(&[0xff; 16], 64, 100).unwrap_err().contains("unknown kind"));
        let failed = encode(Terminal::Failed(Failure::Setup { what: "x".into(), errno: 2 }), AGE);
        assert_eq!(read(&[&failed.0[..], &failed.1.into_bytes()].concat(), 3, 100).map(|frames| frames.len()), Ok(1));
    }

    #[test]
    fn random_bytes_never_panic() {
        let mut seed = 1_u64;
        for _ in 0..2000 {
            let bytes: Vec<u8> = (0..64)
                .map(|_| {
                    seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                    (seed >> 60) as u8
                })
                .collect();
            let _ = read(&bytes, 16, 1 << 10);
        }
    }

    /// Valid streams, and what a mutation makes of them, in pieces of any size: a frame or an error, and no more memory
    /// than bytes came.
    #[test]
    fn a_hundred_thousand_mutants_are_read_or_refused() {
        use crate::model::random::Random;
        const LIMIT: u64 = 4096;
        let mut random = Random(0xf4a3e);
        let report = PanicReport::new("no".into(), Some("a.rs:1:2".into()), None, vec![1, 2]);
        let streams = [
            Terminal::Returned(vec![5; 1000].into()),
            Terminal::Returned(Rope::default()),
            Terminal::Cancelled,
            Terminal::Panicked(Box::new(report)),
            Terminal::Failed(Failure::TooLarge { size: 9, limit: 8 }),
        ]
        .map(stream);
        let (mut whole, mut refused) = (0, 0);
        for _ in 0..100_000 {
            let mut bytes = random.one_of(&streams);
            for _ in 0..1 + random.below(3) {
                mutate(&mut bytes, &mut random);
            }
            let mut reader = Reader::new(LIMIT);
            let mut rest = &bytes[..];
            let outcome = loop {
                let (mut piece, later) = rest.split_at(rest.len().min(1 + random.below(64) as usize));
                rest = later;
                let found = loop {
                    match reader.next(&mut piece) {
                        Ok(Some(Frame::Executing { .. })) => {}
                        found => break found,
                    }
                };
                assert!(reader.body.capacity() <= 2 * bytes.len() + 64, "{} bytes held", reader.body.capacity());
                if rest.is_empty() || !matches!(found, Ok(None)) {
                    break found;
                }
            };
            whole += u32::from(matches!(outcome, Ok(Some(_))));
            refused += u32::from(outcome.is_err());
        }
        assert!(whole > 10_000 && refused > 10_000, "{whole} whole, {refused} refused");
    }

    fn mutate(bytes: &mut Vec<u8>, random: &mut crate::model::random::Random) {
        let at = random.below(bytes.len() as u64 + 1) as usize;
        match random.below(6) {
            0 if at < bytes.len() => bytes[at] ^= 1 << random.below(8),
            1 => bytes.truncate(at),
            2 => bytes.insert(at, random.next() as u8),
            3 if bytes.len() >= 2 * HEADER_SIZE => {
                let length = random.one_of(&[0, 1, 4095, 4096, 4097, MAX_NOTE, MAX_NOTE + 1, 1 << 63, u64::MAX]);
                bytes[HEADER_SIZE + 8..2 * HEADER_SIZE].copy_from_slice(&length.to_le_bytes());
            }
            4 => bytes.rotate_left(at),
            _ => bytes.extend_from_within(at..),
        }
    }
}

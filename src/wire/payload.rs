//! The codec of arguments and results, behind one seam: to replace it is to replace this file.
//!
//! `bincode` 2 with its standard (variable-length) integers. Decoding takes a slice, never a reader, and the slice must
//! be used up to its last byte.

use std::{
    fmt, io,
    panic::{AssertUnwindSafe, catch_unwind},
};

use bincode::error::DecodeError;
use serde::{Serialize, de::DeserializeOwned};

use super::{beside, bounds, rope::Rope};

/// A value did not encode, or bytes did not decode.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum CodecError {
    /// In the words of the codec or of the value's own implementation.
    Invalid(String),
    /// The encoded value would be larger than the limit.
    TooLarge { size: u64, limit: u64 },
    /// The system refused what a value needs to be encoded: a copy of its descriptor.
    System(i32),
}

impl fmt::Display for CodecError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Invalid(reason) => f.write_str(reason),
            Self::TooLarge { size, limit } => write!(f, "{size} bytes where {limit} are allowed"),
            Self::System(errno) => io::Error::from_raw_os_error(*errno).fmt(f),
        }
    }
}

/// Pieces below this are copied: that costs less than to keep track of them.
const PIECE: usize = 16 << 10;

/// Appends the encoded value to `out`. At most `limit` bytes are kept; the rest is only counted, and `out` is of no use.
pub(crate) fn encode_into<T: Serialize + ?Sized>(value: &T, out: &mut Rope, limit: u64) -> Result<(), CodecError> {
    let mut writer = Bounded { out, size: 0, limit };
    let encoded = bincode::serde::encode_into_writer(value, &mut writer, bincode::config::standard());
    let size = writer.size;
    match encoded {
        Err(e) => Err(beside::failure().map_or_else(|| CodecError::Invalid(message(&e)), CodecError::System)),
        Ok(()) if size > limit => Err(CodecError::TooLarge { size, limit }),
        Ok(()) => Ok(()),
    }
}

/// Decodes one value from all of `bytes`, within the bounds of [`bounds`].
///
/// The codec itself needs no limit: it reads from a slice, and is never asked for text or bytes of its own.
pub(crate) fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, CodecError> {
    let seed = bounds::Seed::<T>::new(bytes.len());
    match bincode::serde::seed_decode_from_slice(seed, bytes, bincode::config::standard()) {
        Ok((value, used)) if used == bytes.len() => Ok(value),
        Ok((_, used)) => {
            Err(CodecError::Invalid(format!("{} bytes are left over after the value", bytes.len() - used)))
        }
        Err(e) => Err(CodecError::Invalid(reason(e))),
    }
}

/// The number that an encoded tuple begins with.
pub(crate) fn first_number(bytes: &[u8]) -> Option<u64> {
    let first = bincode::serde::decode_from_slice::<u64, _>(bytes, bincode::config::standard());
    first.ok().map(|(number, _)| number)
}

/// The same where a panic of the value's `Deserialize` is an error like any other: who wrote the bytes may have meant to
/// cause one.
pub(crate) fn decode_caught<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, CodecError> {
    catch_unwind(AssertUnwindSafe(|| decode(bytes))).unwrap_or_else(|payload| {
        // Its destructor could panic again.
        std::mem::forget(payload);
        Err(CodecError::Invalid("its Deserialize implementation panicked".to_owned()))
    })
}

fn reason(error: DecodeError) -> String {
    match error {
        DecodeError::OtherString(text) => text,
        DecodeError::UnexpectedEnd { .. } => "the bytes end before the value does".to_owned(),
        DecodeError::Utf8 { inner } => inner.to_string(),
        other => message(&other),
    }
}

fn message(error: &impl std::fmt::Display) -> String {
    // bincode's `Display` is its `Debug`, which wraps a message of the user's own in the variant's name.
    let text = error.to_string();
    if text.contains("AnyNotSupported") {
        return "its type must be seen to be decoded (deserialize_any: serde_json::Value, `untagged`, `flatten`), which this \
                codec cannot. Send it as JSON in a String"
            .to_owned();
    }
    match text.strip_prefix("OtherString(\"").and_then(|text| text.strip_suffix("\")")) {
        Some(inner) => inner.to_owned(),
        None => text,
    }
}

struct Bounded<'a> {
    out: &'a mut Rope,
    size: u64,
    limit: u64,
}

impl bincode::enc::write::Writer for &mut Bounded<'_> {
    fn write(&mut self, bytes: &[u8]) -> Result<(), bincode::error::EncodeError> {
        self.size = self.size.saturating_add(bytes.len() as u64);
        if self.size <= self.limit {
            match Some(bytes).filter(|bytes| bytes.len() >= PIECE).and_then(beside::take_piece) {
                Some(piece) => self.out.push(piece),
                None => self.out.extend(bytes),
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use serde::Deserialize;

    use super::*;

    #[test]
    fn values_survive() {
        let mut out = Rope::from(vec![7]);
        let value = (1_u64, "text".to_owned(), Some(vec![1.5_f64]));
        encode_into(&value, &mut out, 1000).unwrap();
        assert_eq!(decode::<(u64, String, Option<Vec<f64>>)>(&out.into_bytes()[1..]).unwrap(), value);
    }

    #[test]
    fn the_limit_is_exact_and_names_the_size() {
        let text = "x".repeat(100);
        let encode = |limit| encode_into(&text, &mut Rope::default(), limit);
        assert_eq!(encode(101), Ok(()));
        assert_eq!(encode(100), Err(CodecError::TooLarge { size: 101, limit: 100 }));
        assert_eq!(encode_into(&(), &mut Rope::default(), 0), Ok(()));
    }

    #[test]
    fn bytes_must_be_used_up() {
        assert!(
            matches!(decode::<u8>(&[1, 2]), Err(CodecError::Invalid(why)) if why.contains("1 bytes are left over"))
        );
        assert!(decode::<u8>(&[]).is_err());
        assert!(decode::<bool>(&[2]).is_err());
        assert!(decode::<String>(&[253, 255, 255, 255, 255, 255, 255, 255, 255]).is_err());
    }

    #[test]
    fn a_message_of_the_value_is_kept() {
        #[derive(Debug)]
        struct Never;
        impl Serialize for Never {
            fn serialize<S: serde::Serializer>(&self, _: S) -> Result<S::Ok, S::Error> {
                Err(serde::ser::Error::custom("it does not want to"))
            }
        }
        let error = encode_into(&Never, &mut Rope::default(), 10);
        assert_eq!(error, Err(CodecError::Invalid("it does not want to".into())));
    }

    fn refused<T: DeserializeOwned>(bytes: &[u8]) -> String {
        match decode::<T>(bytes) {
            Ok(_) => panic!("{} decodes", std::any::type_name::<T>()),
            Err(CodecError::Invalid(why)) => why,
            Err(other) => panic!("{other:?}"),
        }
    }

    fn encoded<T: Serialize>(value: &T) -> Vec<u8> {
        let mut out = Rope::default();
        encode_into(value, &mut out, u64::MAX).unwrap();
        out.into_bytes().to_vec()
    }

    /// The length of a sequence as it is encoded.
    fn length(n: u64) -> Vec<u8> {
        encoded(&n)
    }

    #[derive(Debug, Deserialize)]
    struct List {
        _value: u8,
        _next: Option<Box<List>>,
    }

    #[derive(Debug, Deserialize)]
    enum Peano {
        Zero,
        Succ(#[expect(dead_code, reason = "to be deep")] Box<Peano>),
    }

    #[derive(Debug, Deserialize)]
    enum Json {
        Null,
        Object(#[expect(dead_code, reason = "to be deep")] HashMap<String, Json>),
        Pair(
            #[expect(dead_code, reason = "to be deep")] Box<Json>,
            #[expect(dead_code, reason = "to be deep")] [u64; 16],
        ),
    }

    #[derive(Debug, Deserialize)]
    struct Large {
        _kids: HashMap<u8, Large>,
        _texts: ([String; 4], [u64; 4]),
    }

    #[derive(Debug, Deserialize)]
    struct Huge {
        _kids: Vec<Huge>,
        _rest: [[u64; 32]; 16],
    }

    /// What is nested `n` times, each time between these bytes.
    fn nested(n: usize, before: &[u8], innermost: &[u8], after: &[u8]) -> Vec<u8> {
        [before.repeat(n), innermost.to_vec(), after.repeat(n)].concat()
    }

    #[test]
    fn a_value_may_be_so_deep_and_no_deeper() {
        let list = |nodes: usize| decode::<List>(&nested(nodes - 1, &[7, 1], &[7, 0], &[]));
        assert!(list(255).is_ok(), "two levels each");
        assert!(list(256).is_ok(), "the last `None` is no level");
        let Err(CodecError::Invalid(why)) = list(257) else { panic!() };
        assert!(why.contains("deeper than 512 levels") && why.contains("send it flat"), "{why}");
        let peano = |n: usize| decode::<Peano>(&nested(n - 1, &[1], &[0], &[]));
        assert!(peano(511).is_ok() && peano(512).is_ok() && peano(513).is_err());
        // What a list of a million nodes is to whoever believes it, and endless bytes.
        assert!(refused::<List>(&nested(1_000_000, &[7, 1], &[7, 0], &[])).contains("nested deeper"));
        assert!(refused::<Peano>(&[1; 1_000_000]).contains("nested deeper"));
        assert!(refused::<Json>(&[1, 1, 0].repeat(1_000_000)).contains("nested deeper"));
        assert!(refused::<Large>(&[1].repeat(1_000_000)).contains("nested deeper"));
    }

    /// The deepest that is not refused.
    fn deepest<T: DeserializeOwned>(before: &[u8], innermost: &[u8], after: &[u8]) -> (usize, Vec<u8>) {
        let nested = |n| nested(n, before, innermost, after);
        let n = (1..).take_while(|&n| decode::<T>(&nested(n)).is_ok()).last().unwrap();
        (n, nested(n))
    }

    /// They are decoded and dropped on three quarters of a usual thread's stack: an overflow would end the tests.
    #[test]
    fn the_deepest_values_fit_a_thread() {
        fn fits<T: DeserializeOwned + 'static>(atleast: usize, before: &[u8], innermost: &[u8], after: &[u8]) {
            let (n, bytes) = deepest::<T>(before, innermost, after);
            assert!(n >= atleast, "{} levels of {}", n, std::any::type_name::<T>());
            let small = std::thread::Builder::new().stack_size(3 << 19);
            small.spawn(move || drop(decode::<T>(&bytes).unwrap())).unwrap().join().unwrap();
        }
        fits::<List>(255, &[7, 1], &[7, 0], &[]);
        fits::<Peano>(511, &[1], &[0], &[]);
        fits::<Json>(120, &[1, 1, 0], &[0], &[]);
        fits::<Json>(120, &[2], &[0], &[0; 16]);
        fits::<Large>(100, &[1, 7], &[0; 9], &[0; 8]);
        fits::<Huge>(10, &[1], &[0; 513], &[0; 512]);
    }

    #[test]
    fn elements_without_bytes_are_few() {
        #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
        struct Unit;
        for many in [[255, 255, 255, 255, 255, 255, 255, 255].as_slice(), &[0, 0, 0, 0, 0, 1, 0, 0]] {
            let bytes = [&[253], many].concat();
            assert!(refused::<Vec<()>>(&bytes).contains("send their number"));
            assert!(refused::<std::collections::LinkedList<Unit>>(&bytes).contains("send their number"));
            assert!(refused::<HashMap<(), ()>>(&bytes).contains("send their number"));
            assert!(refused::<Vec<[u64; 0]>>(&bytes).contains("send their number"));
            assert!(refused::<Vec<u64>>(&bytes).contains("send their number"));
        }
        // Many a little.
        let inner = length(60_000);
        let bytes = [length(1000), inner.repeat(1000)].concat();
        assert!(refused::<Vec<Vec<()>>>(&bytes).contains("send their number"));
        assert!(refused::<Vec<HashMap<(), ()>>>(&bytes).contains("send their number"));
        // What a program has.
        let units = vec![(); 65_536];
        assert_eq!(decode::<Vec<()>>(&encoded(&units)).unwrap().len(), 65_536);
        let some = vec![[(); 32]; 5000];
        assert_eq!(decode::<Vec<[(); 32]>>(&encoded(&some)).unwrap(), some);
        let with_few_bytes: Vec<_> = (0..200_000).map(|n| (Unit, (), n as u8, [Unit, Unit])).collect();
        assert_eq!(decode::<Vec<(Unit, (), u8, [Unit; 2])>>(&encoded(&with_few_bytes)).unwrap(), with_few_bytes);
        let lists: Vec<Vec<Option<()>>> = (0..1000).map(|n| vec![Some(()); n % 200]).collect();
        assert_eq!(decode::<Vec<Vec<Option<()>>>>(&encoded(&lists)).unwrap(), lists);
        let map: HashMap<u32, Vec<Unit>> = (0..10_000).map(|n| (n, vec![Unit; 5])).collect();
        assert_eq!(decode::<HashMap<u32, Vec<Unit>>>(&encoded(&map)).unwrap(), map);
    }

    #[test]
    fn nothing_is_allocated_for_bytes_that_are_not_there() {
        /// As many zeros as its sequence claims to have elements.
        #[derive(Debug)]
        struct Room(usize, Vec<Room>);
        impl<'de> Deserialize<'de> for Room {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                struct Hint;
                impl<'de> serde::de::Visitor<'de> for Hint {
                    type Value = Room;
                    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                        f.write_str("rooms")
                    }
                    fn visit_seq<A: serde::de::SeqAccess<'de>>(self, mut seq: A) -> Result<Room, A::Error> {
                        let hint = seq.size_hint().unwrap();
                        ASKED.set(ASKED.get() + hint);
                        let mut rooms = Vec::new();
                        while let Some(room) = seq.next_element()? {
                            rooms.push(room);
                        }
                        Ok(Room(hint, rooms))
                    }
                }
                deserializer.deserialize_seq(Hint)
            }
        }
        thread_local!(static ASKED: std::cell::Cell<usize> = const { std::cell::Cell::new(0) });
        let bytes = length(1000).repeat(100);
        refused::<Room>(&bytes);
        assert!(ASKED.get() <= bytes.len(), "room for {} elements in {} bytes", ASKED.get(), bytes.len());
        // Those that are there are told in full.
        let room = decode::<Room>(&[5, 0, 0, 1, 0, 0, 0]).unwrap();
        assert_eq!((room.0, room.1[2].0, room.1.len()), (5, 1, 5));
        for huge in [1_u64 << 40, 1 << 63, u64::MAX] {
            let bytes = [length(huge), vec![b'x'; 100]].concat();
            assert!(refused::<String>(&bytes).contains("bytes end before"));
            assert!(refused::<serde_bytes::ByteBuf>(&bytes).contains("bytes end before"));
            assert!(refused::<std::path::PathBuf>(&bytes).contains("bytes end before"));
            assert!(refused::<Vec<u8>>(&bytes).contains("more elements than its bytes"));
            assert!(refused::<HashMap<String, u64>>(&bytes).contains("more elements than its bytes"));
        }
    }

    #[test]
    fn what_is_no_value_of_the_type_is_refused() {
        assert!(refused::<String>(&[2, 0xff, 0xfe]).contains("utf-8"));
        assert!(refused::<char>(&[0xf4, 0x90, 0x80, 0x80]).contains("InvalidCharEncoding"), "above 10FFFF");
        assert!(decode::<char>(&[0xed, 0xa0, 0x80]).is_err(), "half of a surrogate");
        assert!(refused::<std::num::NonZeroU8>(&[0]).contains("nonzero"));
        assert!(refused::<bool>(&[2]).contains("InvalidBooleanValue(2)"));
        assert!(decode::<Option<u8>>(&[2, 0]).is_err());
        assert!(refused::<Peano>(&[9]).contains("variant index"));
        assert!(refused::<(u64, String)>(&encoded(&1_u64)).contains("bytes end before"));
        assert!(refused::<u64>(&encoded(&(1_u64, "x"))).contains("left over"));
        assert!(refused::<u8>(&encoded(&300_u64)).contains("left over"));
        assert!(decode::<i8>(&encoded(&"text")).is_err());
    }

    #[test]
    fn bytes_and_text_are_lent() {
        /// Where the bytes are that it was decoded from, by one of four methods.
        struct Place<const METHOD: u8>(*const u8);
        impl<'de, const METHOD: u8> Deserialize<'de> for Place<METHOD> {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                struct Lent;
                impl<'de> serde::de::Visitor<'de> for Lent {
                    type Value = *const u8;
                    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                        f.write_str("what is lent")
                    }
                    fn visit_borrowed_bytes<E>(self, bytes: &'de [u8]) -> Result<*const u8, E> {
                        Ok(bytes.as_ptr())
                    }
                    fn visit_borrowed_str<E>(self, text: &'de str) -> Result<*const u8, E> {
                        Ok(text.as_ptr())
                    }
                }
                match METHOD {
                    0 => deserializer.deserialize_bytes(Lent),
                    1 => deserializer.deserialize_byte_buf(Lent),
                    2 => deserializer.deserialize_str(Lent),
                    _ => deserializer.deserialize_string(Lent),
                }
                .map(Self)
            }
        }
        let bytes = encoded(&"lent");
        assert_eq!(decode::<Place<0>>(&bytes).unwrap().0, bytes[1..].as_ptr());
        assert_eq!(decode::<Place<1>>(&bytes).unwrap().0, bytes[1..].as_ptr());
        let deep = encoded(&vec![Some("lent")]);
        assert_eq!(decode::<Vec<Option<Place<2>>>>(&deep).unwrap()[0].as_ref().unwrap().0, deep[3..].as_ptr());
        assert_eq!(decode::<Place<3>>(&bytes).unwrap().0, bytes[1..].as_ptr());
    }

    /// Such as the one that replaces bincode, which may not tell lengths.
    #[test]
    fn the_bounds_hold_for_another_codec() {
        use serde::de::DeserializeSeed;
        fn json<T: DeserializeOwned>(text: &str, bytes: usize) -> Result<T, String> {
            let mut deserializer = serde_json::Deserializer::from_str(text);
            bounds::Seed::<T>::new(bytes).deserialize(&mut deserializer).map_err(|e| e.to_string())
        }
        let text = r#"{"a":[1,-2.5,"x",null,true],"b":{"c":{}}}"#;
        assert_eq!(json::<serde_json::Value>(text, text.len()).unwrap().to_string(), text);
        let nulls = |n: usize| format!("[{}null]", "null,".repeat(n - 1));
        assert!(json::<Vec<()>>(&nulls(65_000), 0).is_ok());
        assert!(json::<Vec<()>>(&nulls(65_537), 0).unwrap_err().contains("send their number"));
    }
}

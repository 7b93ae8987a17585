//! The codec of arguments and results, behind one seam: to replace it is to replace this file.
//!
//! `bincode` 2 with its standard (variable-length) integers. Decoding takes a slice, never a reader, and the slice must
//! be used up to its last byte.

use serde::{Serialize, de::DeserializeOwned};

use super::{beside, rope::Rope};

/// A value did not encode, or bytes did not decode.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum CodecError {
    /// In the words of the codec or of the value's own implementation.
    Invalid(String),
    /// The encoded value would be larger than the limit.
    TooLarge { size: u64, limit: u64 },
}

/// Pieces below this are copied: that costs less than to keep track of them.
const PIECE: usize = 16 << 10;

/// Appends the encoded value to `out`. At most `limit` bytes are kept; the rest is only counted, and `out` is of no use.
pub(crate) fn encode_into<T: Serialize + ?Sized>(value: &T, out: &mut Rope, limit: u64) -> Result<(), CodecError> {
    let mut writer = Bounded { out, size: 0, limit };
    let encoded = bincode::serde::encode_into_writer(value, &mut writer, bincode::config::standard());
    let size = writer.size;
    match encoded {
        Err(e) => Err(CodecError::Invalid(message(&e))),
        Ok(()) if size > limit => Err(CodecError::TooLarge { size, limit }),
        Ok(()) => Ok(()),
    }
}

/// Decodes one value from all of `bytes`.
///
/// The codec believes the lengths that it reads, so it gets a budget: it claims at most sixteen bytes (a `u128`) for one
/// that was encoded. Its limit is part of a type, hence the ladder, of few
/// steps because each is one more copy of the decoder. Caps on depth and elements come with the adaptor
/// that large payloads need.
pub(crate) fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, CodecError> {
    macro_rules! ladder {
        ($($bits:literal)*) => {
            match (bytes.len() as u64).saturating_mul(16).saturating_add(64) {
                $(budget if budget <= 1 << $bits => decode_within::<T, { 1 << $bits }>(bytes),)*
                _ => Err(CodecError::Invalid("more bytes than any machine has".to_owned())),
            }
        };
    }
    ladder!(16 22 28 34 40)
}

fn decode_within<T: DeserializeOwned, const LIMIT: usize>(bytes: &[u8]) -> Result<T, CodecError> {
    match bincode::serde::decode_from_slice(bytes, bincode::config::standard().with_limit::<LIMIT>()) {
        Ok((value, used)) if used == bytes.len() => Ok(value),
        Ok((_, used)) => {
            Err(CodecError::Invalid(format!("{} bytes are left over after the value", bytes.len() - used)))
        }
        Err(e) => Err(CodecError::Invalid(message(&e))),
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
}

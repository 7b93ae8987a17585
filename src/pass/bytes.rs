//! Bytes that cross at the speed of the socket.

use std::{fmt, ops::Deref};

use serde::{
    Deserialize, Deserializer, Serialize, Serializer,
    de::{SeqAccess, Visitor},
};

use crate::wire::beside;

/// Bytes as arguments and results, at the speed of memory.
///
/// `serde` takes a `Vec<u8>` byte by byte: there and back a megabyte of one takes some ten times as long. This type travels
/// as one piece. It is not copied before it is sent, and what arrives is a view of what was received. `bytes::Bytes` (with
/// its feature `serde`) and `serde_bytes` are as good for what is below a megabyte; they copy once on each side.
///
/// A clone shares the bytes. So does what is decoded: a small `Bytes` keeps the whole result in memory that it came
/// with; [`into_vec`](Self::into_vec) makes a copy if it is only a part.
///
/// ```
/// use tokio_run_in_process::{Bytes, block_on, run_in_process};
///
/// async fn invert(image: Bytes) -> Bytes {
///     image.iter().map(|byte| !byte).collect()
/// }
///
/// block_on(async {
///     let image = Bytes::from(vec![0; 1 << 20]);
///     let inverted = run_in_process(invert, image).await.unwrap();
///     assert!(inverted.iter().all(|&byte| byte == 255));
/// })
/// .unwrap();
/// ```
#[derive(Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Bytes(bytes::Bytes);

/// From here on what is decoded is shared; less is copied, so that it does not keep what is much larger.
const SHARE: usize = 4096;

impl Bytes {
    /// No bytes.
    pub const fn new() -> Self {
        Self(bytes::Bytes::new())
    }

    /// Bytes of the program itself.
    pub const fn from_static(bytes: &'static [u8]) -> Self {
        Self(bytes::Bytes::from_static(bytes))
    }

    /// The bytes as a vector, without copying them if nobody else has them.
    ///
    /// ```
    /// use tokio_run_in_process::Bytes;
    ///
    /// assert_eq!(Bytes::from("abc").into_vec(), b"abc");
    /// ```
    pub fn into_vec(self) -> Vec<u8> {
        self.0.into()
    }
}

impl Deref for Bytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.0
    }
}

impl AsRef<[u8]> for Bytes {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl fmt::Debug for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl From<Vec<u8>> for Bytes {
    /// Does not copy.
    fn from(bytes: Vec<u8>) -> Self {
        Self(bytes.into())
    }
}

impl From<Box<[u8]>> for Bytes {
    /// Does not copy.
    fn from(bytes: Box<[u8]>) -> Self {
        Self(bytes.into())
    }
}

impl From<&[u8]> for Bytes {
    /// Copies.
    fn from(bytes: &[u8]) -> Self {
        Self(bytes::Bytes::copy_from_slice(bytes))
    }
}

impl From<String> for Bytes {
    /// Does not copy.
    fn from(text: String) -> Self {
        Self(text.into())
    }
}

impl From<&str> for Bytes {
    /// Copies.
    fn from(text: &str) -> Self {
        text.as_bytes().into()
    }
}

impl From<bytes::Bytes> for Bytes {
    /// Does not copy.
    fn from(bytes: bytes::Bytes) -> Self {
        Self(bytes)
    }
}

impl From<Bytes> for bytes::Bytes {
    /// Does not copy.
    fn from(bytes: Bytes) -> Self {
        bytes.0
    }
}

impl From<Bytes> for Vec<u8> {
    fn from(bytes: Bytes) -> Self {
        bytes.into_vec()
    }
}

impl FromIterator<u8> for Bytes {
    fn from_iter<I: IntoIterator<Item = u8>>(bytes: I) -> Self {
        Vec::from_iter(bytes).into()
    }
}

impl Serialize for Bytes {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        beside::piece(&self.0, || serializer.serialize_bytes(&self.0))
    }
}

impl<'de> Deserialize<'de> for Bytes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        // Not as a buffer of its own, which a codec would copy to first.
        deserializer.deserialize_bytes(BytesVisitor)
    }
}

struct BytesVisitor;

impl<'de> Visitor<'de> for BytesVisitor {
    type Value = Bytes;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("bytes")
    }

    fn visit_borrowed_bytes<E>(self, bytes: &'de [u8]) -> Result<Bytes, E> {
        let shared = Some(bytes).filter(|bytes| bytes.len() >= SHARE).and_then(beside::share);
        Ok(shared.map_or_else(|| bytes.into(), Bytes))
    }

    fn visit_bytes<E>(self, bytes: &[u8]) -> Result<Bytes, E> {
        Ok(bytes.into())
    }

    fn visit_byte_buf<E>(self, bytes: Vec<u8>) -> Result<Bytes, E> {
        Ok(bytes.into())
    }

    /// Codecs without bytes, as JSON, write numbers.
    fn visit_seq<A: SeqAccess<'de>>(self, mut numbers: A) -> Result<Bytes, A::Error> {
        let mut bytes = Vec::with_capacity(numbers.size_hint().unwrap_or(0).min(1 << 20));
        while let Some(byte) = numbers.next_element()? {
            bytes.push(byte);
        }
        Ok(bytes.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::{payload, rope::Rope};

    fn encoded(value: &impl Serialize) -> Rope {
        let mut rope = Rope::default();
        let (result, _) = beside::encoding(false, || payload::encode_into(value, &mut rope, u64::MAX));
        result.unwrap();
        rope
    }

    #[test]
    fn large_ones_are_not_copied_on_either_side() {
        let bytes = Bytes::from(vec![7; 1 << 20]);
        let rope = encoded(&(1_u8, &bytes, 2_u8));
        let (slices, count) = rope.slices(0, usize::MAX);
        assert!(slices[..count].iter().any(|slice| slice.as_ptr() == bytes.as_ptr()));
        let received = rope.into_bytes();
        let decode = || payload::decode::<(u8, Bytes, u8)>(&received).unwrap();
        let (one, came, two) = beside::decoding(received.clone(), None, decode);
        assert_eq!((one, two), (1, 2));
        assert_eq!(came, bytes);
        assert!(received.as_ptr_range().contains(&came.as_ptr()));
    }

    #[test]
    fn every_size_survives_with_this_codec_and_another() {
        for size in [0, 1, SHARE - 1, SHARE, SHARE + 1, (16 << 10) - 1, 16 << 10, (16 << 10) + 1] {
            let bytes: Bytes = (0..size).map(|n| n as u8).collect();
            let received = encoded(&vec![bytes.clone(); 3]).into_bytes();
            let decode = || payload::decode::<Vec<Bytes>>(&received).unwrap();
            assert_eq!(beside::decoding(received.clone(), None, decode), vec![bytes.clone(); 3]);
            let json = serde_json::to_string(&bytes).unwrap();
            assert_eq!(serde_json::from_str::<Bytes>(&json).unwrap(), bytes);
        }
    }

    #[test]
    fn they_are_encoded_as_serde_bytes_are() {
        let bytes = vec![1, 2, 3];
        let ours = encoded(&Bytes::from(bytes.clone())).into_bytes();
        assert_eq!(ours, encoded(&serde_bytes::ByteBuf::from(bytes.clone())).into_bytes());
        assert_eq!(ours, encoded(&bytes).into_bytes());
    }
}

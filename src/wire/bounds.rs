//! Bounds on what is decoded: how deep it nests, and how many elements it has.
//!
//! `serde` recurses once for every level of a value, and so does the destructor of the value; the bytes say how many
//! levels there are. They say too how many elements a sequence has, and elements such as `()` take no bytes. So whoever
//! wrote the bytes decides about the stack, the memory and the time of whoever decodes them.
//!
//! [`Within`] goes around what `serde` hands from one to the other, and counts. Numbers, text and bytes pass it by: only
//! what may contain something is wrapped. Its methods are `inline` because a tuple in a long sequence is three times as
//! slow otherwise.

use std::{cell::Cell, fmt, marker::PhantomData};

use serde::de::{
    Deserialize, DeserializeSeed, Deserializer, EnumAccess, Error, MapAccess, SeqAccess, VariantAccess, Visitor,
};

/// So deep may a value nest. A sequence, a map, a tuple, a struct, an enum, the fields of a variant (if it has names or
/// several), a `Some` and a newtype are a level each; `Box` and what else `serde` does not see are none. So a list of
/// `Option<Box<Node>>` may have 255 nodes.
///
/// A thread has two megabytes. In a build without optimisation a level takes 0.9 to 2.3 kilobytes of them to decode and
/// at most 0.9 to drop: 1.1 megabytes for the deepest value of the worst type that was found, a map of structs of 168
/// bytes; with optimisation it is 0.35. The tests look.
pub(super) const MAX_LEVELS: u32 = 512;
/// A type of so many bytes counts for one level more, since `serde` moves it from frame to frame, up to sixteen times.
const STEP: usize = 128;
/// So many elements may be there beyond the number of bytes. An element that takes bytes takes one that is in no element
/// of its own; so only what has more than these which take none is refused.
const FREE: usize = 1 << 16;

/// What may still come, seen from one level of a value.
struct Left<'a> {
    levels: u32,
    elements: &'a Cell<usize>,
}

impl Left<'_> {
    /// The same one level deeper, in a value of the type `V`; `None` if that is too deep.
    #[inline]
    fn below<V>(&self) -> Option<Self> {
        let levels = self.levels.checked_sub(const { 1 + ((size_of::<V>() + STEP / 2) / STEP) as u32 })?;
        Some(Self { levels, ..*self })
    }

    /// Counts `n` elements; `None` if they are too many. Gives for how many there are bytes, so that room can be made for
    /// them: all claims together make room for as many as there are bytes.
    #[inline]
    fn claim(&self, n: usize) -> Option<usize> {
        let left = self.elements.get();
        self.elements.set(left.checked_sub(n)?);
        Some(n.min(left.saturating_sub(FREE)))
    }

    /// For how many elements room can be made, if there are so many; `None` if they are too many.
    #[inline]
    fn room(&self, counts: bool, hint: Option<usize>) -> Option<usize> {
        let n = hint.unwrap_or(0);
        if counts { self.claim(n) } else { Some(n) }
    }
}

#[cold]
fn too_deep<E: Error>() -> E {
    E::custom(format_args!(
        "it is nested deeper than {MAX_LEVELS} levels (one of a large type counts for several): send it flat, as a `Vec` \
         whose elements name each other by index"
    ))
}

#[cold]
fn too_many<E: Error>() -> E {
    E::custom(format_args!(
        "it claims more elements than its bytes can be. Of elements that take no bytes, such as `()`, there may be {FREE}: \
         send their number instead"
    ))
}

/// A value that is decoded within the bounds of so many bytes. The deserializer must tell how long a sequence is before
/// its elements, else they are counted one by one.
pub(super) struct Seed<T> {
    bytes: usize,
    value: PhantomData<T>,
}

impl<T> Seed<T> {
    pub(super) fn new(bytes: usize) -> Self {
        Self { bytes, value: PhantomData }
    }
}

impl<'de, T: Deserialize<'de>> DeserializeSeed<'de> for Seed<T> {
    type Value = T;

    #[inline]
    fn deserialize<D: Deserializer<'de>>(self, inner: D) -> Result<T, D::Error> {
        let elements = Cell::new(self.bytes.saturating_add(FREE));
        let left = &Left { levels: MAX_LEVELS, elements: &elements };
        T::deserialize(Within { inner, left })
    }
}

/// Something of `serde`'s, with bounds. It is small, since `serde` moves it from frame to frame.
///
/// `COUNTS`: a visitor of what has its number of elements in the bytes, not in its type.
struct Within<'a, T, const COUNTS: bool = false> {
    inner: T,
    left: &'a Left<'a>,
}

impl<'de, S: DeserializeSeed<'de>> DeserializeSeed<'de> for Within<'_, S> {
    type Value = S::Value;

    #[inline]
    fn deserialize<D: Deserializer<'de>>(self, inner: D) -> Result<S::Value, D::Error> {
        self.inner.deserialize(Within { inner, left: self.left })
    }
}

/// These contain nothing.
macro_rules! pass_by {
    ($($method:ident)*) => {
        $(#[inline]
        fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, D::Error> {
            self.inner.$method(visitor)
        })*
    };
}

/// These may.
macro_rules! go_into {
    ($counts:literal: $($method:ident($($name:ident: $type:ty),*))*) => {
        $(#[inline]
        fn $method<V: Visitor<'de>>(self, $($name: $type,)* inner: V) -> Result<V::Value, D::Error> {
            self.inner.$method($($name,)* Within::<V, $counts> { inner, left: self.left })
        })*
    };
}

impl<'de, D: Deserializer<'de>> Deserializer<'de> for Within<'_, D> {
    type Error = D::Error;

    pass_by! {
        deserialize_bool deserialize_i8 deserialize_i16 deserialize_i32 deserialize_i64 deserialize_i128
        deserialize_u8 deserialize_u16 deserialize_u32 deserialize_u64 deserialize_u128
        deserialize_f32 deserialize_f64 deserialize_char deserialize_str deserialize_bytes
        deserialize_unit deserialize_identifier
    }

    go_into! { false:
        deserialize_option()
        deserialize_unit_struct(name: &'static str)
        deserialize_newtype_struct(name: &'static str)
        deserialize_tuple(len: usize)
        deserialize_tuple_struct(name: &'static str, len: usize)
        deserialize_struct(name: &'static str, fields: &'static [&'static str])
        deserialize_enum(name: &'static str, variants: &'static [&'static str])
    }

    go_into! { true:
        deserialize_seq()
        deserialize_map()
        deserialize_any()
        deserialize_ignored_any()
    }

    // Owned text and bytes are read as slices of the input. bincode would make a buffer of the length that it reads
    // before it looks whether the bytes are there; and a visitor that takes owned ones must take borrowed ones too.

    #[inline]
    fn deserialize_string<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, D::Error> {
        self.inner.deserialize_str(visitor)
    }

    #[inline]
    fn deserialize_byte_buf<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, D::Error> {
        self.inner.deserialize_bytes(visitor)
    }

    fn is_human_readable(&self) -> bool {
        self.inner.is_human_readable()
    }
}

macro_rules! visit_by {
    ($($method:ident($type:ty))*) => {
        $(#[inline]
        fn $method<E: Error>(self, value: $type) -> Result<V::Value, E> {
            self.inner.$method(value)
        })*
    };
}

impl<'de, V: Visitor<'de>, const COUNTS: bool> Visitor<'de> for Within<'_, V, COUNTS> {
    type Value = V::Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.inner.expecting(f)
    }

    visit_by! {
        visit_bool(bool) visit_i8(i8) visit_i16(i16) visit_i32(i32) visit_i64(i64) visit_i128(i128)
        visit_u8(u8) visit_u16(u16) visit_u32(u32) visit_u64(u64) visit_u128(u128) visit_f32(f32) visit_f64(f64)
        visit_char(char) visit_str(&str) visit_borrowed_str(&'de str) visit_string(String)
        visit_bytes(&[u8]) visit_borrowed_bytes(&'de [u8]) visit_byte_buf(Vec<u8>)
    }

    #[inline]
    fn visit_none<E: Error>(self) -> Result<V::Value, E> {
        self.inner.visit_none()
    }

    #[inline]
    fn visit_unit<E: Error>(self) -> Result<V::Value, E> {
        self.inner.visit_unit()
    }

    #[inline]
    fn visit_some<D: Deserializer<'de>>(self, inner: D) -> Result<V::Value, D::Error> {
        let Some(left) = self.left.below::<V::Value>() else { return Err(too_deep()) };
        self.inner.visit_some(Within { inner, left: &left })
    }

    #[inline]
    fn visit_newtype_struct<D: Deserializer<'de>>(self, inner: D) -> Result<V::Value, D::Error> {
        let Some(left) = self.left.below::<V::Value>() else { return Err(too_deep()) };
        self.inner.visit_newtype_struct(Within { inner, left: &left })
    }

    #[inline]
    fn visit_seq<A: SeqAccess<'de>>(self, inner: A) -> Result<V::Value, A::Error> {
        let Some(left) = self.left.below::<V::Value>() else { return Err(too_deep()) };
        let hint = inner.size_hint();
        let Some(room) = left.room(COUNTS, hint) else { return Err(too_many()) };
        self.inner.visit_seq(Items { inner, left: &left, room, each: COUNTS && hint.is_none() })
    }

    #[inline]
    fn visit_map<A: MapAccess<'de>>(self, inner: A) -> Result<V::Value, A::Error> {
        let Some(left) = self.left.below::<V::Value>() else { return Err(too_deep()) };
        let hint = inner.size_hint();
        let Some(room) = left.room(COUNTS, hint) else { return Err(too_many()) };
        self.inner.visit_map(Items { inner, left: &left, room, each: COUNTS && hint.is_none() })
    }

    #[inline]
    fn visit_enum<A: EnumAccess<'de>>(self, inner: A) -> Result<V::Value, A::Error> {
        let Some(left) = self.left.below::<V::Value>() else { return Err(too_deep()) };
        self.inner.visit_enum(Within { inner, left: &left })
    }
}

/// Elements of a sequence, entries of a map.
struct Items<'a, A> {
    inner: A,
    left: &'a Left<'a>,
    /// For so many there may be room made.
    room: usize,
    /// Nobody said how many there are: each is counted as it comes.
    each: bool,
}

impl<A> Items<'_, A> {
    #[inline]
    fn one_more(&self) -> bool {
        !self.each || self.left.claim(1).is_some()
    }
}

impl<'de, A: SeqAccess<'de>> SeqAccess<'de> for Items<'_, A> {
    type Error = A::Error;

    #[inline]
    fn next_element_seed<S: DeserializeSeed<'de>>(&mut self, inner: S) -> Result<Option<S::Value>, A::Error> {
        if !self.one_more() {
            return Err(too_many());
        }
        self.inner.next_element_seed(Within { inner, left: self.left })
    }

    #[inline]
    fn size_hint(&self) -> Option<usize> {
        self.inner.size_hint().map(|n| n.min(self.room))
    }
}

impl<'de, A: MapAccess<'de>> MapAccess<'de> for Items<'_, A> {
    type Error = A::Error;

    #[inline]
    fn next_key_seed<S: DeserializeSeed<'de>>(&mut self, inner: S) -> Result<Option<S::Value>, A::Error> {
        if !self.one_more() {
            return Err(too_many());
        }
        self.inner.next_key_seed(Within { inner, left: self.left })
    }

    #[inline]
    fn next_value_seed<S: DeserializeSeed<'de>>(&mut self, inner: S) -> Result<S::Value, A::Error> {
        self.inner.next_value_seed(Within { inner, left: self.left })
    }

    #[inline]
    fn size_hint(&self) -> Option<usize> {
        self.inner.size_hint().map(|n| n.min(self.room))
    }
}

impl<'de, 'a, A: EnumAccess<'de>> EnumAccess<'de> for Within<'a, A> {
    type Error = A::Error;
    type Variant = Within<'a, A::Variant>;

    #[inline]
    fn variant_seed<S: DeserializeSeed<'de>>(self, seed: S) -> Result<(S::Value, Self::Variant), A::Error> {
        let (name, inner) = self.inner.variant_seed(seed)?;
        Ok((name, Within { inner, left: self.left }))
    }
}

impl<'de, A: VariantAccess<'de>> VariantAccess<'de> for Within<'_, A> {
    type Error = A::Error;

    #[inline]
    fn unit_variant(self) -> Result<(), A::Error> {
        self.inner.unit_variant()
    }

    fn newtype_variant_seed<S: DeserializeSeed<'de>>(self, inner: S) -> Result<S::Value, A::Error> {
        self.inner.newtype_variant_seed(Within { inner, left: self.left })
    }

    #[inline]
    fn tuple_variant<V: Visitor<'de>>(self, len: usize, inner: V) -> Result<V::Value, A::Error> {
        self.inner.tuple_variant(len, Within::<V, false> { inner, left: self.left })
    }

    #[inline]
    fn struct_variant<V: Visitor<'de>>(self, fields: &'static [&'static str], inner: V) -> Result<V::Value, A::Error> {
        self.inner.struct_variant(fields, Within::<V, false> { inner, left: self.left })
    }
}

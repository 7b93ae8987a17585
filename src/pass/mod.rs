//! Values that live in both processes: bytes that are not copied, memory that is shared, descriptors, channels.
//!
//! Each of them is an ordinary `serde` type to a task's arguments. What `serde` cannot carry goes beside the bytes
//! (`wire/beside.rs`); in a place where nothing can go beside, such a value says so and does not encode.

mod bytes;
mod fd;
mod shared;

pub(crate) use self::shared::let_go;
pub use self::{
    bytes::Bytes,
    fd::{Descriptor, Fd},
    shared::{Shared, SharedBuilder},
};

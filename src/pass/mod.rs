//! Values that live in both processes: bytes that are not copied, memory that is shared, descriptors, channels.
//!
//! Each of them is an ordinary `serde` type to a task's arguments. What `serde` cannot carry goes beside the bytes
//! (`wire/beside.rs`); in a place where nothing can go beside, such a value says so and does not encode.

mod bytes;
mod call;
mod channel;
mod end;
mod fd;
pub(crate) mod reactor;
mod receiver;
mod sender;
mod shared;
pub(crate) mod stream;

pub(crate) use self::shared::let_go;
pub use self::{
    bytes::Bytes,
    call::{Caller, Reply, Responder, call_channel},
    channel::{ChannelError, MESSAGE_LIMIT, channel, channel_with_limit},
    fd::{Descriptor, Fd},
    receiver::Receiver,
    sender::Sender,
    shared::{Shared, SharedBuilder},
};

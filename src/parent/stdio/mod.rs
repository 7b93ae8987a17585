//! A worker's stdin, stdout and stderr, and the parent's ends of the pipes.
//!
//! A pipe that the worker writes is always read by the driver: into a buffer while somebody may still read it, into
//! nothing when the buffer is full and nobody does. So a worker that prints never waits for a caller that does not read.

mod output;
mod reader;
mod setting;
#[cfg(feature = "tracing")]
mod traced;
mod writer;

pub use output::{Captured, Output, RunOutput};
pub(super) use reader::OutputPipe;
pub use reader::PipeReader;
pub use setting::Stdio;
pub(super) use setting::{OUTPUT_LIMIT, Outlet, Pipes, open};
#[cfg(feature = "tracing")]
pub use traced::flush_traced;
pub use writer::PipeWriter;

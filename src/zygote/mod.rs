//! The process that forks workers: single-threaded, small, and untouched by anything of the user's.
//!
//! It takes orders on its control socket and reports facts there. Between two messages it holds what `children` says and
//! nothing else. It blocks every signal for life; while it waits, and only then, SIGCHLD gets through. It never hashes,
//! never uses tokio or a random generator: what it touched, every worker would share.
//!
//! It leaves, and kills every worker before that, when its control socket ends or the watch on the parent says so.

mod children;
mod estate;
mod groups;
mod preload;
pub(crate) mod serve;

//! An error that travels: any `std::error::Error` with its source chain, as text.

use std::{error::Error as StdError, fmt};

use serde::{Deserialize, Serialize};

/// Captures any error with its source chain, so that a task can use `?` and still return a `Result` that serialises.
///
/// ```
/// use tokio_run_in_process::{CapturedError, run_in_process};
///
/// async fn read(path: String) -> Result<String, CapturedError> {
///     Ok(std::fs::read_to_string(path)?)
/// }
///
/// tokio_run_in_process::block_on(async {
///     let error = run_in_process(read, "/no/such/file".to_owned()).await.unwrap().unwrap_err();
///     assert!(error.to_string().contains("No such file"));
///     assert_eq!(error.type_name(), "std::io::error::Error");
/// })
/// .unwrap();
/// ```
///
/// Like `anyhow::Error` it does not implement [`std::error::Error`] itself, so that `?` can convert every error into
/// it; [`into_error`](Self::into_error) gives one that does. `{:#}` prints the whole chain in one line.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CapturedError {
    type_name: String,
    message: String,
    sources: Vec<String>,
}

/// Of a longer chain the rest is left out.
const MOST_SOURCES: usize = 64;

impl CapturedError {
    /// An error of a message alone.
    ///
    /// ```
    /// # use tokio_run_in_process::CapturedError;
    /// assert_eq!(CapturedError::msg("no route").to_string(), "no route");
    /// ```
    pub fn msg(message: impl fmt::Display) -> Self {
        Self { type_name: "message".to_owned(), message: message.to_string(), sources: Vec::new() }
    }

    /// The path of the type that was captured.
    pub fn type_name(&self) -> &str {
        &self.type_name
    }

    /// The messages of the error and of its sources, outermost first.
    ///
    /// ```
    /// # use tokio_run_in_process::CapturedError;
    /// let error = CapturedError::from("x".parse::<u32>().unwrap_err());
    /// assert_eq!(error.chain().collect::<Vec<_>>(), ["invalid digit found in string"]);
    /// ```
    pub fn chain(&self) -> impl Iterator<Item = &str> {
        std::iter::once(&*self.message).chain(self.sources.iter().map(|source| &**source))
    }

    /// The same as a [`std::error::Error`], with its sources.
    pub fn into_error(self) -> Box<dyn StdError + Send + Sync> {
        let mut source = None;
        // One that was decoded has as many as whoever wrote the bytes liked, and a chain is dropped by recursion.
        for message in self.sources.into_iter().take(MOST_SOURCES).rev() {
            source = Some(Box::new(Link { message, source }));
        }
        Box::new(Link { message: self.message, source })
    }
}

impl<E: StdError> From<E> for CapturedError {
    fn from(error: E) -> Self {
        let mut sources = Vec::new();
        let mut source = error.source();
        while let Some(error) = source.filter(|_| sources.len() < MOST_SOURCES) {
            sources.push(error.to_string());
            source = error.source();
        }
        Self { type_name: std::any::type_name::<E>().to_owned(), message: error.to_string(), sources }
    }
}

impl fmt::Display for CapturedError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        if f.alternate() {
            for source in &self.sources {
                write!(f, ": {source}")?;
            }
        }
        Ok(())
    }
}

impl fmt::Debug for CapturedError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self:#} [{}]", self.type_name)
    }
}

#[derive(Debug)]
struct Link {
    message: String,
    source: Option<Box<Link>>,
}

impl fmt::Display for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl StdError for Link {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.source.as_deref().map(|link| link as _)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_chain_survives() {
        let inner = std::io::Error::other("disk on fire");
        let outer = std::io::Error::other(Link {
            message: "no config".into(),
            source: Some(Box::new(Link { message: inner.to_string(), source: None })),
        });
        let captured = CapturedError::from(outer);
        assert_eq!(captured.chain().collect::<Vec<_>>(), ["no config", "disk on fire"]);
        assert_eq!(format!("{captured:#}"), "no config: disk on fire");
        let error = captured.into_error();
        assert_eq!(error.source().unwrap().to_string(), "disk on fire");
    }

    #[test]
    fn a_forged_chain_is_no_deeper_than_a_captured_one() {
        let forged = CapturedError { sources: vec![String::new(); 1_000_000], ..CapturedError::msg("x") };
        let error = forged.into_error();
        assert_eq!(
            std::iter::successors(Some(&*error as &(dyn StdError + 'static)), |&error| error.source()).count(),
            65
        );
    }
}

//! What travels beside an encoded value: pieces of bytes that are not copied, and descriptors.
//!
//! `serde` knows bytes only, so a type that has more (`Bytes`, `Fd`, `Shared`, the ends of a channel) leaves it in a place
//! of this thread while its value is encoded, and writes where it is; decoded, it takes it from there. Outside of that,
//! with another codec or in another place than a task's arguments, such a type says that it cannot travel.

use std::{cell::RefCell, io, os::fd::OwnedFd, sync::Arc};

use bytes::Bytes;

/// A descriptor on its way to a worker.
#[derive(Clone, Debug)]
pub(crate) struct Passed {
    pub(crate) fd: Arc<OwnedFd>,
    /// The other side waits for the last copy to be closed: ours is closed once the worker has it.
    pub(crate) owned: bool,
}

/// Most descriptors that one value may have with it.
pub(crate) const MAX_FDS: usize = 4096;

#[derive(Debug, Default)]
struct Scope {
    /// The bytes that are being encoded just now, if they need not be copied.
    piece: Option<Bytes>,
    /// Descriptors that go along; `None` where none can.
    outgoing: Option<Vec<Passed>>,
    /// The system's word why a descriptor could not be copied.
    failure: Option<i32>,
    /// What is being decoded.
    source: Bytes,
    /// Descriptors that came along; `None` where none can.
    incoming: Option<Vec<Option<OwnedFd>>>,
}

thread_local! {
    static SCOPE: RefCell<Option<Scope>> = const { RefCell::new(None) };
}

/// Puts the scope before back, also if the user's code panics.
struct Restore(Option<Scope>);

impl Drop for Restore {
    fn drop(&mut self) {
        SCOPE.set(self.0.take());
    }
}

fn within<T>(scope: Scope, act: impl FnOnce() -> T) -> (T, Scope) {
    let restore = Restore(SCOPE.replace(Some(scope)));
    let value = act();
    let scope = SCOPE.take().unwrap_or_default();
    drop(restore);
    (value, scope)
}

/// Encodes something; the descriptors that it left, if it may have any.
pub(crate) fn encoding<T>(with_fds: bool, encode: impl FnOnce() -> T) -> (T, Vec<Passed>) {
    let (value, scope) = within(Scope { outgoing: with_fds.then(Vec::new), ..Scope::default() }, encode);
    (value, scope.outgoing.unwrap_or_default())
}

/// Decodes something of `source`, with the descriptors that came with it. Those that it does not take are closed.
pub(crate) fn decoding<T>(source: Bytes, fds: Option<Vec<OwnedFd>>, decode: impl FnOnce() -> T) -> T {
    let incoming = fds.map(|fds| fds.into_iter().map(Some).collect());
    within(Scope { source, incoming, ..Scope::default() }, decode).0
}

/// Lets `serialize`, which gives `bytes` to a codec as one slice, leave them where they are.
pub(crate) fn piece<T>(bytes: &Bytes, serialize: impl FnOnce() -> T) -> T {
    set_piece(Some(bytes.clone()));
    let value = serialize();
    set_piece(None);
    value
}

fn set_piece(piece: Option<Bytes>) {
    SCOPE.with_borrow_mut(|scope| {
        if let Some(scope) = scope {
            scope.piece = piece;
        }
    });
}

/// The piece that was announced, if the codec was given just this.
pub(crate) fn take_piece(slice: &[u8]) -> Option<Bytes> {
    SCOPE.with_borrow_mut(|scope| scope.as_mut()?.piece.take_if(|piece| std::ptr::eq(&raw const piece[..], slice)))
}

/// The same bytes as a share of what is decoded, if they lie in it.
pub(crate) fn share(slice: &[u8]) -> Option<Bytes> {
    SCOPE.with_borrow(|scope| {
        let source = &scope.as_ref()?.source;
        let within = source.as_ptr_range();
        let part = slice.as_ptr_range();
        (!slice.is_empty() && within.start <= part.start && part.end <= within.end).then(|| source.slice_ref(slice))
    })
}

/// Whether descriptors can go along with what is encoded.
pub(crate) fn takes_fds() -> bool {
    SCOPE.with_borrow(|scope| scope.as_ref().is_some_and(|scope| scope.outgoing.is_some()))
}

/// Leaves a descriptor, and says by which number it will be found.
pub(crate) fn leave_fd(passed: Passed) -> Result<u32, &'static str> {
    SCOPE.with_borrow_mut(|scope| {
        let fds = scope.as_mut().and_then(|scope| scope.outgoing.as_mut());
        let fds = fds.ok_or(
            "a descriptor can only be passed in the arguments of a task: not in a result, not in a message of a channel, \
             not by another codec",
        )?;
        if fds.len() == MAX_FDS {
            return Err("at most 4096 descriptors can be passed to one task");
        }
        fds.push(passed);
        Ok(u32::try_from(fds.len() - 1).unwrap_or(u32::MAX))
    })
}

/// The system refused a copy of a descriptor: the encoding ends with this text, and the error is known as what it is.
pub(crate) fn fail(error: io::Error) -> io::Error {
    SCOPE.with_borrow_mut(|scope| {
        if let Some(scope) = scope {
            scope.failure = error.raw_os_error();
        }
    });
    error
}

/// Why the encoding failed, if the system refused something.
pub(crate) fn failure() -> Option<i32> {
    SCOPE.with_borrow(|scope| scope.as_ref()?.failure)
}

/// Takes the descriptor of that number.
pub(crate) fn take_fd(number: u32) -> Result<OwnedFd, &'static str> {
    SCOPE.with_borrow_mut(|scope| {
        let fds = scope.as_mut().and_then(|scope| scope.incoming.as_mut());
        let fds = fds.ok_or("a descriptor can only be received in the arguments of a task")?;
        let fd = fds.get_mut(number as usize).and_then(Option::take);
        fd.ok_or("a descriptor that did not come along, or was taken before")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn null() -> Passed {
        Passed { fd: Arc::new(std::fs::File::open("/dev/null").unwrap().into()), owned: true }
    }

    #[test]
    fn descriptors_are_left_and_found_by_number() {
        let (numbers, left) = encoding(true, || [leave_fd(null()), leave_fd(null())]);
        assert_eq!((numbers, left.len()), ([Ok(0), Ok(1)], 2));
        let fds = left.into_iter().map(|passed| Arc::into_inner(passed.fd).unwrap()).collect();
        decoding(Bytes::new(), Some(fds), || {
            assert!(take_fd(1).is_ok());
            assert!(take_fd(1).is_err(), "twice");
            assert!(take_fd(2).is_err(), "none of that number");
        });
    }

    #[test]
    fn elsewhere_none_can_travel() {
        assert!(leave_fd(null()).is_err());
        assert!(take_fd(0).is_err());
        assert!(encoding(false, || leave_fd(null())).0.is_err());
        assert!(decoding(Bytes::new(), None, || take_fd(0)).is_err());
        let (full, _) = encoding(true, || (0..=MAX_FDS).map(|_| leave_fd(null())).filter(Result::is_err).count());
        assert_eq!(full, 1);
    }

    #[test]
    fn a_piece_is_only_taken_for_itself() {
        let bytes = Bytes::from(vec![1; 10]);
        let (taken, _) =
            encoding(false, || piece(&bytes, || (take_piece(&bytes[1..]), take_piece(&bytes), take_piece(&bytes))));
        assert_eq!(taken, (None, Some(bytes.clone()), None));
        assert_eq!(piece(&bytes, || take_piece(&bytes)), None, "nothing is encoded");
    }

    #[test]
    fn a_share_is_of_the_source_only() {
        let source = Bytes::from(vec![1; 10]);
        let part = decoding(source.clone(), None, || share(&source[2..5])).unwrap();
        assert_eq!(part.as_ptr(), source[2..].as_ptr());
        assert_eq!(decoding(source.clone(), None, || share(&[1, 1])), None);
        assert_eq!(share(&source), None);
    }

    #[test]
    fn scopes_nest_and_survive_a_panic() {
        encoding(true, || {
            let _ = std::panic::catch_unwind(|| encoding(false, || panic!("the user's")));
            assert_eq!(encoding(true, || leave_fd(null())).0, Ok(0));
            assert_eq!(leave_fd(null()), Ok(0));
        });
        assert!(leave_fd(null()).is_err());
    }
}

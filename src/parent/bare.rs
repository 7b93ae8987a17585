//! A job without options: one that goes over a pool's line, or to a zygote that preloads.

use std::sync::Arc;

use serde::Serialize;

use super::{parcel::Parcel, zygote::Zygote};
use crate::{
    error::{Error, TaskId},
    task::Entry,
    wire::{
        beside,
        job::{HEADER_SIZE, Header, Host},
        payload,
        rope::Rope,
    },
};

/// A task, checked and encoded.
pub(super) struct BareJob {
    pub(super) name: Arc<str>,
    pub(super) parcel: Parcel,
    /// Its worker says that it executes: our copies of its descriptors are closed then, and its bytes freed.
    pub(super) announces: bool,
    pub(super) result_limit: u64,
}

impl BareJob {
    /// `argument_limit` and `result_limit` are bytes.
    pub(super) fn new<F, A: Serialize>(
        zygote: &Zygote,
        (argument_limit, result_limit): (u64, u64),
        entry: Entry,
        arguments: &A,
    ) -> Result<Self, Error> {
        let name: Arc<str> = std::any::type_name::<F>().into();
        let task = || TaskId { name: name.clone(), pid: None };
        if !zygote.0.modules.contain(entry.address()) {
            return Err(Error::UnknownCode { task: task() });
        }
        let mut rope = Rope::from(vec![0; HEADER_SIZE]);
        let (encoded, passed) = beside::encoding(true, || payload::encode_into(arguments, &mut rope, argument_limit));
        encoded.map_err(|e| Error::encode(task(), e))?;
        let arguments = (rope.len() - HEADER_SIZE) as u64;
        let owned = passed.iter().any(|passed| passed.owned);
        let fds: Vec<_> = passed.into_iter().map(|passed| passed.fd).collect();
        let (number, options, host) = (fds.len() as u16, 0, Host::Tokio);
        let mut parcel = Parcel::new(rope, fds);
        let announces = owned || parcel.is_large();
        let header =
            Header { fds: number, quiet: !announces, entry: entry.address(), options, arguments, host, result_limit };
        parcel.head_mut()[..HEADER_SIZE].copy_from_slice(&header.encode());
        Ok(Self { name, parcel, announces, result_limit })
    }
}

//! A job as it goes over a pool's line.

use std::sync::Arc;

use serde::Serialize;

use super::super::zygote::Zygote;
use crate::{
    error::{Error, TaskId},
    task::Entry,
    wire::{
        job::{HEADER_SIZE, Header, Host},
        payload,
    },
};

/// A task, checked and encoded.
pub(super) struct PoolJob {
    pub(super) name: Arc<str>,
    pub(super) bytes: Vec<u8>,
    pub(super) result_limit: u64,
}

impl PoolJob {
    pub(super) fn new<F, A: Serialize>(zygote: &Zygote, entry: Entry, arguments: &A) -> Result<Self, Error> {
        let name: Arc<str> = std::any::type_name::<F>().into();
        let task = || TaskId { name: name.clone(), pid: None };
        if !zygote.0.modules.contain(entry.address()) {
            return Err(Error::UnknownCode { task: task() });
        }
        let mut bytes = vec![0; HEADER_SIZE];
        payload::encode_into(arguments, &mut bytes, u64::MAX).map_err(|e| Error::encode(task(), e))?;
        let result_limit = zygote.0.config.result_limit;
        let arguments = (bytes.len() - HEADER_SIZE) as u64;
        let (fds, quiet, options, host) = (0, true, 0, Host::Tokio);
        let header = Header { fds, quiet, entry: entry.address(), options, arguments, host, result_limit };
        bytes[..HEADER_SIZE].copy_from_slice(&header.encode());
        Ok(Self { name, bytes, result_limit })
    }
}

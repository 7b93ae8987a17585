//! What a zygote is started with: defaults, then the environment, then the builder.

use std::{ffi::OsString, time::Duration};

use crate::error::StartError;

/// How many processes may hold a task at a time, unless the builder or the environment says otherwise.
pub const MAX_PROCESSES: usize = 16;

const MAX_PROCS_VARIABLE: &str = "TOKIO_RUN_IN_PROCESS_MAX_PROCS";
/// How many warm workers stand ready at least, unless the builder or the environment says otherwise.
pub const WARM_WORKERS: usize = 4;

const WARM_VARIABLE: &str = "TOKIO_RUN_IN_PROCESS_WARM";
const STARTUP_VARIABLE: &str = "TOKIO_RUN_IN_PROCESS_STARTUP_TIMEOUT";

/// The limits of a zygote's tasks, before their own options.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Config {
    pub(crate) max_processes: usize,
    pub(crate) max_queued: Option<usize>,
    pub(crate) queue_timeout: Option<Duration>,
    pub(crate) startup_timeout: Duration,
    pub(crate) grace_period: Duration,
    pub(crate) result_limit: u64,
    pub(crate) argument_limit: u64,
    /// How many warm workers stand at least; `None` if nobody said.
    pub(crate) warm: Option<usize>,
}

impl Config {
    pub(crate) const DEFAULT: Self = Self {
        max_processes: MAX_PROCESSES,
        max_queued: None,
        queue_timeout: None,
        startup_timeout: Duration::from_secs(5),
        grace_period: Duration::from_secs(2),
        result_limit: 1 << 30,
        argument_limit: 1 << 30,
        warm: None,
    };

    /// The defaults, with what the environment says. A variable that is malformed is an error, also if the builder would
    /// override it.
    pub(crate) fn from_env(get: impl Fn(&str) -> Option<OsString>) -> Result<Self, StartError> {
        let mut config = Self::DEFAULT;
        let text = |name| get(name).map(|value| value.to_string_lossy().into_owned());
        if let Some(value) = text(MAX_PROCS_VARIABLE) {
            config.max_processes = parse_count(&value).ok_or(StartError::Config {
                name: MAX_PROCS_VARIABLE,
                value,
                expected: "a number of processes from 1 on",
            })?;
        }
        if let Some(value) = text(STARTUP_VARIABLE) {
            config.startup_timeout = parse_seconds(&value).ok_or(StartError::Config {
                name: STARTUP_VARIABLE,
                value,
                expected: "a number of seconds above 0",
            })?;
        }
        if let Some(value) = text(WARM_VARIABLE) {
            let count = value.trim().parse().ok();
            config.warm = Some(count.ok_or(StartError::Config {
                name: WARM_VARIABLE,
                value,
                expected: "a number of workers from 0 on",
            })?);
        }
        Ok(config)
    }

    /// Whether workers stand ready for tasks at all.
    pub(crate) fn keeps_warm(&self) -> bool {
        self.warm != Some(0)
    }

    /// How many of a kind there are at most, whatever the load.
    pub(crate) fn most_warm(&self) -> usize {
        match self.keeps_warm() {
            false => 0,
            true => self.warm.unwrap_or(WARM_WORKERS).max(self.max_processes.min(64)),
        }
    }

    pub(crate) fn check(self) -> Result<Self, StartError> {
        if self.max_processes == 0 {
            return Err(StartError::Config {
                name: "max_processes",
                value: "0".to_owned(),
                expected: "a number of processes from 1 on",
            });
        }
        Ok(self)
    }
}

fn parse_count(text: &str) -> Option<usize> {
    text.trim().parse().ok().filter(|&n| n > 0)
}

fn parse_seconds(text: &str) -> Option<Duration> {
    let seconds: f64 = text.trim().parse().ok()?;
    Duration::try_from_secs_f64(seconds).ok().filter(|duration| !duration.is_zero())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn from(max: Option<&str>, startup: Option<&str>) -> Result<Config, StartError> {
        Config::from_env(|name| match name {
            MAX_PROCS_VARIABLE => max.map(OsString::from),
            STARTUP_VARIABLE => startup.map(OsString::from),
            _ => None,
        })
    }

    #[test]
    fn the_environment_is_read() {
        assert_eq!(from(None, None).unwrap(), Config::DEFAULT);
        assert_eq!(Config::DEFAULT.grace_period, Duration::from_secs(2), "as documented");
        let config = from(Some("3"), Some("0.5")).unwrap();
        assert_eq!((config.max_processes, config.startup_timeout), (3, Duration::from_millis(500)));
    }

    #[test]
    fn a_malformed_variable_is_an_error() {
        for bad in ["", "0", "-1", "many", "1.5"] {
            let error = from(Some(bad), None).unwrap_err().to_string();
            assert!(error.contains(MAX_PROCS_VARIABLE) && error.contains(&format!("{bad:?}")), "{error}");
        }
        let warm = |text: &str| Config::from_env(|name| (name == WARM_VARIABLE).then(|| text.into()));
        assert_eq!(warm("0").unwrap().most_warm(), 0);
        assert_eq!(warm("9").unwrap().warm, Some(9));
        for bad in ["", "-1", "some"] {
            assert!(warm(bad).unwrap_err().to_string().contains(WARM_VARIABLE));
        }
        for bad in ["", "0", "-1", "soon", "inf", "nan", "1e300"] {
            assert!(from(None, Some(bad)).unwrap_err().to_string().contains(STARTUP_VARIABLE));
        }
    }
}

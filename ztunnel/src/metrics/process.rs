//! What the process is, and what it uses.

use std::fmt;

use nix::sys::resource::{Resource, getrlimit};
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use super::ISTIO;
use super::exposition::{Families, Numbers, read_at_scrape};

/// Adds `istio_build` and `process_*` to `registry`. `tag` is the Istio version that the process belongs to; none is
/// `unknown`.
pub fn register(registry: &mut Registry, tag: Option<&str>) {
    let build = Family::<[(&str, String); 2], Gauge>::default();
    let tag = tag.unwrap_or("unknown").to_owned();
    build.get_or_create(&[("component", "ztunnel".to_owned()), ("tag", tag)]).set(1);
    registry.sub_registry_with_prefix(ISTIO).register("build", "The version that runs, always 1", build);
    read_at_scrape(registry.sub_registry_with_prefix("process"), Usage::read);
}

/// Each number that the system tells.
struct Usage {
    open_files: Option<i64>,
    max_files: Option<i64>,
    resident_bytes: Option<i64>,
}

impl Usage {
    fn read() -> Self {
        Self { open_files: open_files(), max_files: max_files(), resident_bytes: resident_bytes() }
    }
}

impl Numbers for Usage {
    fn expose(&self, families: &mut Families<'_>) -> fmt::Result {
        if let Some(open) = self.open_files {
            families.gauge("open_fds", "Number of open file descriptors.", open)?;
        }
        if let Some(max) = self.max_files {
            families.gauge("max_fds", "Maximum number of open file descriptors.", max)?;
        }
        if let Some(resident) = self.resident_bytes {
            families.gauge("resident_memory_bytes", "Resident memory size in bytes (unstable).", resident)?;
        }
        Ok(())
    }
}

fn open_files() -> Option<i64> {
    let listed = std::fs::read_dir("/proc/self/fd").ok()?.count();
    // One of them is the directory that is being read.
    i64::try_from(listed.saturating_sub(1)).ok()
}

fn max_files() -> Option<i64> {
    let (soft, _) = getrlimit(Resource::RLIMIT_NOFILE).ok()?;
    Some(i64::try_from(soft).unwrap_or(i64::MAX))
}

/// From the line `VmRSS: <number> kB` (proc_pid_status(5)).
fn resident_bytes() -> Option<i64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let value = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kilobytes: i64 = value.trim().strip_suffix("kB")?.trim_end().parse().ok()?;
    kilobytes.checked_mul(1024)
}

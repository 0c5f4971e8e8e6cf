//! How many data-plane threads there are.

use super::read::Reader;
use super::settings;
use super::values::{CpuCount, WorkerCount};

/// What the number of threads depends on.
#[derive(Clone, Copy, Debug)]
struct Inputs {
    asked: Option<WorkerCount>,
    /// CPUs for percentages: the downward API's limit, which equals the node's CPUs when the pod has none.
    cpus: usize,
    /// The pod's explicit CPU limit.
    limit: Option<usize>,
    /// The pod's CPU request.
    request: Option<usize>,
}

/// `concurrency` is that of the proxy configuration.
pub(super) fn workers(read: &mut Reader<'_>, concurrency: Option<u16>) -> usize {
    let count = |cpus: Option<CpuCount>| cpus.map(|CpuCount(cpus)| cpus);
    let logical = || std::thread::available_parallelism().map_or(1, usize::from);
    let inputs = Inputs {
        asked: read.optional(&settings::ZTUNNEL_WORKER_THREADS).or(concurrency.map(of_concurrency)),
        cpus: count(read.optional(&settings::ZTUNNEL_CPU_LIMIT)).unwrap_or_else(logical),
        limit: count(read.optional(&settings::ZTUNNEL_RESOURCE_CPU_LIMIT)),
        request: count(read.optional(&settings::ZTUNNEL_RESOURCE_CPU_REQUEST)),
    };
    resolve(inputs)
}

fn of_concurrency(concurrency: u16) -> WorkerCount {
    match concurrency {
        0 => WorkerCount::AllCpus,
        threads => WorkerCount::Threads(threads.into()),
    }
}

fn resolve(Inputs { asked, cpus, limit, request }: Inputs) -> usize {
    let cpus = limit.unwrap_or(cpus);
    let request = request.unwrap_or(1);
    let threads = match (asked, limit) {
        (Some(WorkerCount::Threads(threads)), _) => threads,
        (Some(WorkerCount::AllCpus), _) => cpus,
        (Some(WorkerCount::Percent(percent)), _) => (cpus * usize::from(percent)).div_ceil(100),
        (None, Some(limit)) => limit.max(request),
        (None, None) => cpus.div_ceil(4).max(request).max(2),
    };
    threads.max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOTHING: Inputs = Inputs { asked: None, cpus: 1, limit: None, request: None };

    #[test]
    fn an_explicit_number_wins() {
        let asked = |asked, cpus| resolve(Inputs { asked: Some(asked), cpus, ..NOTHING });
        assert_eq!(asked(WorkerCount::Threads(4), 64), 4);
        assert_eq!(asked(WorkerCount::Percent(50), 8), 4);
        assert_eq!(asked(WorkerCount::Percent(30), 16), 5);
        assert_eq!(asked(WorkerCount::Percent(10), 4), 1);
        assert_eq!(asked(WorkerCount::AllCpus, 6), 6);
    }

    #[test]
    fn a_limit_is_used_whole_even_below_two() {
        let limit = |limit, request| resolve(Inputs { limit: Some(limit), request, ..NOTHING });
        assert_eq!(limit(16, None), 16);
        assert_eq!(limit(1, None), 1);
        assert_eq!(limit(4, Some(8)), 8);
    }

    #[test]
    fn without_a_limit_a_quarter_of_the_cpus_serves_the_mesh() {
        assert_eq!(resolve(Inputs { cpus: 32, ..NOTHING }), 8);
        assert_eq!(resolve(Inputs { cpus: 2, request: Some(8), ..NOTHING }), 8);
        assert_eq!(resolve(Inputs { cpus: 2, request: Some(1), ..NOTHING }), 2);
    }
}

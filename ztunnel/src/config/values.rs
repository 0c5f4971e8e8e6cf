//! The forms a setting's text can take. `None` means: not of this form.

use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use identity::{CipherPreference, KeyExchange, TlsVersions};
use tracing_subscriber::filter::{LevelFilter, Targets};

use crate::telemetry::{LogFilter, LogFormat};

/// The workload of a dedicated proxy.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct WorkloadName {
    /// Kubernetes namespace.
    pub namespace: String,
    /// Pod name.
    pub name: String,
    /// Kubernetes service account.
    pub service_account: String,
}

/// Text of `PROXY_MODE`.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Mode {
    /// All pods of a node.
    Shared,
    /// One workload.
    Dedicated,
}

/// Text of `ZTUNNEL_WORKER_THREADS`.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum WorkerCount {
    /// So many.
    Threads(usize),
    /// One per CPU.
    AllCpus,
    /// This share of the CPUs, from 1 to 100.
    Percent(u8),
}

/// Text of `COMPLIANCE_POLICY`.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Compliance {
    /// A choice of key exchange.
    KeyExchange(KeyExchange),
    /// Validated cryptography and nothing else.
    Fips140_3,
}

/// At which level policy decisions are logged.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum PolicyLog {
    /// Where they do not disturb.
    #[default]
    Debug,
    /// Where everybody sees them.
    Info,
}

/// A number of CPUs, at least 1.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct CpuCount(pub usize);

pub(super) fn text(text: &str) -> Option<String> {
    Some(text.to_owned())
}

pub(super) fn path(text: &str) -> Option<PathBuf> {
    (!text.is_empty()).then(|| text.into())
}

pub(super) fn boolean(text: &str) -> Option<bool> {
    text.parse().ok()
}

pub(super) fn number(text: &str) -> Option<u32> {
    text.parse().ok()
}

/// Ten years. Times of this size can be added to one another and to the clock without a thought.
const LONGEST: Duration = Duration::from_secs(3_650 * 86_400);

pub(super) fn seconds(text: &str) -> Option<u64> {
    text.parse().ok().filter(|seconds| *seconds <= LONGEST.as_secs())
}

pub(super) fn positive<T: FromStr + PartialOrd + From<u8>>(text: &str) -> Option<T> {
    text.parse().ok().filter(|number| *number >= T::from(1))
}

/// RFC 9113, section 6.9.1: a window holds at most 2^31-1 bytes.
pub(super) fn window(text: &str) -> Option<u32> {
    positive(text).filter(|bytes| *bytes < 1 << 31)
}

/// RFC 9113, section 6.9.2: a connection begins with 65,535 bytes, and no setting takes any of them away.
pub(super) fn connection_window(text: &str) -> Option<u32> {
    window(text).filter(|bytes| *bytes >= 65_535)
}

/// RFC 9113, section 6.5.2.
pub(super) fn frame_size(text: &str) -> Option<u32> {
    number(text).filter(|bytes| (16_384..=16_777_215).contains(bytes))
}

pub(super) fn mode(text: &str) -> Option<Mode> {
    match text {
        "shared" => Some(Mode::Shared),
        "dedicated" => Some(Mode::Dedicated),
        _ => None,
    }
}

pub(super) fn workload_name(text: &str) -> Option<WorkloadName> {
    let mut parts = text.split('/').map(str::to_owned);
    let name = WorkloadName { namespace: parts.next()?, name: parts.next()?, service_account: parts.next()? };
    let complete = ![&name.namespace, &name.name, &name.service_account].iter().any(|part| part.is_empty());
    (complete && parts.next().is_none()).then_some(name)
}

/// Anything but `json` is text, as chart values have always been read.
pub(super) fn log_format(text: &str) -> Option<LogFormat> {
    match text {
        "json" => Some(LogFormat::Json),
        _ => Some(LogFormat::Text),
    }
}

/// A comma list of `level`, for everything, or `target=level`, for what is logged under targets that begin so. The
/// longest target counts. Nothing, and words that are no level, are refused: they would silence the log.
pub(super) fn log_filter(text: &str) -> Option<LogFilter> {
    let targets = text.split(',').try_fold(Targets::new(), |targets, item| match item.split_once('=') {
        None => Some(targets.with_default(level(item)?)),
        Some((target, text)) => Some(targets.with_target(log_target(target)?, level(text)?)),
    })?;
    Some(LogFilter { text: text.to_owned(), targets })
}

/// A Rust path, or a name such as `access`.
fn log_target(text: &str) -> Option<&str> {
    let part_of_name = |character: char| character.is_ascii_alphanumeric() || "_-:".contains(character);
    (!text.is_empty() && text.chars().all(part_of_name)).then_some(text)
}

fn level(text: &str) -> Option<LevelFilter> {
    match text.to_ascii_lowercase().as_str() {
        "off" => Some(LevelFilter::OFF),
        "error" => Some(LevelFilter::ERROR),
        "warn" => Some(LevelFilter::WARN),
        "info" => Some(LevelFilter::INFO),
        "debug" => Some(LevelFilter::DEBUG),
        "trace" => Some(LevelFilter::TRACE),
        _ => None,
    }
}

/// Anything but `true` leaves TLS 1.3 alone.
pub(super) fn tls_versions(text: &str) -> Option<TlsVersions> {
    match text {
        "true" => Some(TlsVersions::Tls12And13),
        _ => Some(TlsVersions::Tls13),
    }
}

/// A policy we do not know is an error: whoever sets one counts on it.
pub(super) fn compliance(text: &str) -> Option<Compliance> {
    match text {
        "" => Some(Compliance::KeyExchange(KeyExchange::ClassicalFirst)),
        "pqc" => Some(Compliance::KeyExchange(KeyExchange::HybridOnly)),
        "fips-140-3" => Some(Compliance::Fips140_3),
        _ => None,
    }
}

pub(super) fn ciphers(text: &str) -> Option<CipherPreference> {
    match text {
        "aes128-first" => Some(CipherPreference::Aes128First),
        "aes256-first" => Some(CipherPreference::Aes256First),
        "aes256-only" => Some(CipherPreference::Aes256Only),
        _ => None,
    }
}

/// Anything but `true` is no.
pub(super) fn policy_log(text: &str) -> Option<PolicyLog> {
    match text {
        "true" => Some(PolicyLog::Info),
        _ => Some(PolicyLog::Debug),
    }
}

pub(super) fn worker_count(text: &str) -> Option<WorkerCount> {
    match text.strip_suffix('%') {
        Some(percent) => {
            percent.parse().ok().filter(|percent| (1..=100).contains(percent)).map(WorkerCount::Percent)
        }
        None => match text.parse::<u16>().ok()? {
            0 => Some(WorkerCount::AllCpus),
            threads => Some(WorkerCount::Threads(threads.into())),
        },
    }
}

pub(super) fn cpu_count(text: &str) -> Option<CpuCount> {
    positive::<u16>(text).map(|cpus| CpuCount(cpus.into()))
}

/// A Kubernetes CPU quantity, rounded up to whole CPUs.
pub(super) fn cpu_quantity(text: &str) -> Option<CpuCount> {
    let cpus = match text.strip_suffix('m') {
        Some(thousandths) => thousandths.parse::<f64>().ok()? / 1000.0,
        None => text.parse::<f64>().ok()?,
    };
    (cpus.is_finite() && cpus > 0.0 && cpus < f64::from(u16::MAX)).then(|| CpuCount(cpus.ceil() as usize))
}

/// `30s`, `1m30s`, `500ms`; a bare number is seconds; `+` adds and `*` multiplies. At most [`LONGEST`].
pub(super) fn duration(text: &str) -> Option<Duration> {
    let sum = text.split('+').map(product).try_fold(Duration::ZERO, |sum, term| sum.checked_add(term?));
    sum.filter(|sum| *sum <= LONGEST)
}

fn product(text: &str) -> Option<Duration> {
    let mut factors = text.split('*').map(str::trim);
    let first = concatenated(factors.next()?)?;
    factors.try_fold(first, |product, factor| product.checked_mul(factor.parse().ok()?))
}

fn concatenated(text: &str) -> Option<Duration> {
    if let Ok(seconds) = text.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let mut rest = text;
    let mut sum = Duration::ZERO;
    while !rest.is_empty() {
        let digits = rest.find(|character: char| !character.is_ascii_digit())?;
        let (number, tail) = rest.split_at(digits);
        let unit_length = tail.find(|character: char| character.is_ascii_digit()).unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(unit_length);
        sum = sum.checked_add(unit_of(unit.trim())?.checked_mul(number.parse().ok()?)?)?;
        rest = tail;
    }
    (!text.is_empty()).then_some(sum)
}

fn unit_of(name: &str) -> Option<Duration> {
    Some(match name {
        "ns" => Duration::from_nanos(1),
        "us" | "µs" => Duration::from_micros(1),
        "ms" => Duration::from_millis(1),
        "s" => Duration::from_secs(1),
        "m" => Duration::from_secs(60),
        "h" => Duration::from_secs(3_600),
        "d" => Duration::from_secs(86_400),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_sums_of_numbers_with_units() {
        let seconds = |text| duration(text).map(|duration| duration.as_secs_f64());
        assert_eq!(seconds("30s"), Some(30.0));
        assert_eq!(seconds("1m30s"), Some(90.0));
        assert_eq!(seconds("500ms"), Some(0.5));
        assert_eq!(seconds("45"), Some(45.0));
        assert_eq!(seconds("1d"), Some(86_400.0));
        assert_eq!(seconds("1m+30s"), Some(90.0));
        assert_eq!(seconds("10s*6"), Some(60.0));
        for wrong in ["", "s", "5 parsecs", "1m30", "-1s", "99999999999999999999s", "+"] {
            assert_eq!(seconds(wrong), None, "{wrong:?}");
        }
    }

    #[test]
    fn nothing_lasts_longer_than_ten_years() {
        assert_eq!(duration("3650d"), Some(LONGEST));
        assert_eq!(seconds("315360000"), Some(LONGEST.as_secs()));
        for wrong in ["3650d1ns", "3650d+1s", "1d*3651", "9999999999999999999"] {
            assert_eq!(duration(wrong), None, "{wrong:?}");
        }
        assert_eq!(seconds("315360001"), None);
    }

    #[test]
    fn a_connection_window_is_no_smaller_than_it_begins() {
        assert_eq!([connection_window("65534"), connection_window("65535")], [None, Some(65_535)]);
        let largest = (1 << 31) - 1;
        assert_eq!([connection_window("2147483647"), connection_window("2147483648")], [Some(largest), None]);
    }

    #[test]
    fn no_machine_has_more_than_65535_cpus() {
        assert_eq!(
            [cpu_count("65535"), cpu_count("65536"), cpu_count("0")],
            [Some(CpuCount(65_535)), None, None]
        );
        assert_eq!(worker_count("65535"), Some(WorkerCount::Threads(65_535)));
        assert_eq!(worker_count("18446744073709551615"), None);
    }

    #[test]
    fn the_longest_target_of_a_log_filter_counts() {
        use tracing::Level;

        let filter = log_filter("ztunnel::proxy=TRACE,info,ztunnel=warn,access=off").unwrap().targets;
        let logs = |target, level| filter.would_enable(target, &level);
        assert!(logs("h2::codec", Level::INFO) && !logs("h2::codec", Level::DEBUG));
        assert!(logs("ztunnel::app", Level::WARN) && !logs("ztunnel::app", Level::INFO));
        assert!(logs("ztunnel::proxy::copy", Level::TRACE));
        assert!(!logs("access", Level::ERROR));
        let silent = log_filter("off").unwrap().targets;
        assert!(!silent.would_enable("ztunnel", &Level::ERROR));
    }

    #[test]
    fn a_log_filter_that_would_not_do_what_it_says_is_refused() {
        let wrong =
            ["", "banana", "info,", "info, debug", "=info", "ztunnel=", "a=b=info", "a[span]=info", "3"];
        for text in wrong {
            assert!(log_filter(text).is_none(), "{text:?}");
        }
    }

    #[test]
    fn booleans_are_exact() {
        assert_eq!((boolean("true"), boolean("false")), (Some(true), Some(false)));
        assert!(["", "1", "yes", "True"].iter().all(|text| boolean(text).is_none()));
    }

    #[test]
    fn a_workload_name_has_three_parts() {
        assert_eq!(workload_name("ns/pod/sa").unwrap().name, "pod");
        assert!(["", "ns/pod", "ns//sa", "ns/pod/sa/x"].iter().all(|text| workload_name(text).is_none()));
    }
}

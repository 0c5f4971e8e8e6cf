//! The outcome, for people and for programs.

use std::fmt;

use serde_json::{Map, Value, json};

use crate::figures::{Figures, Row};
use crate::held;

/// The outcome of a run. Displays as a table.
#[derive(Debug)]
pub struct Report {
    pub(crate) machine: String,
    /// What the columns stand for: a name, and a version or a path.
    pub(crate) programs: Vec<(String, String)>,
    pub(crate) rounds: usize,
    pub(crate) seconds: u64,
    pub(crate) figures: Figures,
    /// For each path with proxies its name and their processes.
    pub(crate) memory: Vec<(String, Vec<held::Process>)>,
}

impl Report {
    /// Everything, with the values of single rounds.
    pub fn to_json(&self) -> Value {
        let paths = &self.figures.paths;
        let by_path = |value: &dyn Fn(usize) -> Value| {
            let values = paths.iter().enumerate().map(|(path, name)| (name.clone(), value(path)));
            values.filter(|(_, value)| !value.is_null()).collect::<Map<_, _>>()
        };
        let direct = self.figures.direct();
        let rows = self.figures.rows.iter().map(|row| {
            json!({
                "load": row.load,
                "unit": row.unit,
                "median": by_path(&|path| row.median(path).into()),
                "ratio_to_direct": by_path(&|path| direct.and_then(|direct| row.ratio(path, direct)).into()),
                "rounds": by_path(&|path| rounds(&row.samples[path])),
            })
        });
        let processes = self.memory.iter().flat_map(|(path, processes)| {
            processes.iter().map(move |process| {
                json!({
                    "path": path,
                    "side": process.side,
                    "program": process.program,
                    "idle_kb": { "rss": process.idle.rss, "pss": process.idle.pss },
                    "holding_kb": { "rss": process.holding.rss, "pss": process.holding.pss },
                })
            })
        });
        json!({
            "machine": self.machine,
            "programs": self.programs.iter().cloned().collect::<std::collections::BTreeMap<_, _>>(),
            "rounds": self.rounds,
            "seconds": self.seconds,
            "held_connections": held::CONNECTIONS,
            "figures": rows.collect::<Vec<_>>(),
            "processes": processes.collect::<Vec<_>>(),
        })
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.machine)?;
        for (name, what) in &self.programs {
            writeln!(f, "  {name:<10} {what}")?;
        }
        let compared =
            if self.figures.direct().is_some() { "; in parentheses the ratio to direct" } else { "" };
        match self.rounds {
            1 => writeln!(f, "1 round of {} s{compared}\n", self.seconds)?,
            rounds => writeln!(f, "medians of {rounds} rounds of {} s{compared}\n", self.seconds)?,
        }
        self.write_figures(f)?;
        if !self.memory.is_empty() {
            self.write_memory(f)?;
        }
        Ok(())
    }
}

impl Report {
    fn write_figures(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:<28} {:<20}", "", "")?;
        for path in &self.figures.paths {
            write!(f, " {path:>16}")?;
        }
        writeln!(f, " {:>7}", "spread")?;
        let mut load = "";
        for row in &self.figures.rows {
            let name = if row.load == load { "" } else { &row.load };
            load = &row.load;
            write!(f, "{name:<28} {:<20}", row.unit)?;
            for path in 0..self.figures.paths.len() {
                write!(f, " {:>16}", self.cell(row, path))?;
            }
            writeln!(
                f,
                " {:>7}",
                row.spread().map_or_else(String::new, |part| format!("{:.0}%", part * 100.0))
            )?;
        }
        Ok(())
    }

    fn cell(&self, row: &Row, path: usize) -> String {
        let Some(median) = row.median(path) else { return "-".to_owned() };
        let value = three_digits(median);
        let direct = self.figures.direct().filter(|direct| *direct != path);
        match direct.and_then(|direct| row.ratio(path, direct)) {
            Some(ratio) => format!("{value} ({})", three_digits(ratio)),
            None => value,
        }
    }

    fn write_memory(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let holding = format!("holding {}", held::CONNECTIONS);
        writeln!(f, "\n{:<45} {:>20} {holding:>20}", "memory of each process, kB", "idle")?;
        writeln!(f, "{:<45} {:>10}{:>10} {:>10}{:>10}", "", "Rss", "Pss", "Rss", "Pss")?;
        for (path, processes) in &self.memory {
            for process in processes {
                let name = format!("{path}, {} side: {}", process.side, process.program);
                let (idle, holding) = (process.idle, process.holding);
                writeln!(
                    f,
                    "{name:<45} {:>10}{:>10} {:>10}{:>10}",
                    idle.rss, idle.pss, holding.rss, holding.pss
                )?;
            }
        }
        Ok(())
    }
}

/// Nothing where there were none.
fn rounds(samples: &[f64]) -> Value {
    if samples.is_empty() { Value::Null } else { json!(samples) }
}

/// Three significant digits, and all digits before the point.
fn three_digits(value: f64) -> String {
    let decimals = match value.abs() {
        small if small < 9.995 => 2,
        medium if medium < 99.95 => 1,
        _ => 0,
    };
    format!("{value:.decimals$}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::usage::Memory;

    fn report() -> Report {
        let mut figures = Figures::new(vec!["direct".to_owned(), "proxy".to_owned()]);
        for (direct, proxy, cpu) in [(8.0, 2.0, 1.5), (10.0, 2.0, 1.8)] {
            figures.record(0, "1 stream", "GB/s", direct);
            figures.record(1, "1 stream", "GB/s", proxy);
            figures.record(1, "1 stream", "CPU s/GB", cpu);
        }
        let process = held::Process {
            side: "client",
            program: "p".to_owned(),
            idle: Memory { rss: 5000, pss: 3000 },
            holding: Memory { rss: 9000, pss: 7000 },
        };
        Report {
            machine: "a machine".to_owned(),
            programs: vec![("proxy".to_owned(), "1.0".to_owned())],
            rounds: 2,
            seconds: 3,
            figures,
            memory: vec![("proxy".to_owned(), vec![process])],
        }
    }

    #[test]
    fn the_table_shows_medians_ratios_and_spread_and_names_each_load_once() {
        let text = report().to_string();
        let words = |start: &str| {
            let line = text.lines().find(|line| line.contains(start)).unwrap();
            line.split_whitespace().map(str::to_owned).collect::<Vec<_>>()
        };
        assert_eq!(words("GB/s")[..], ["1", "stream", "GB/s", "9.00", "2.00", "(0.23)", "22%"]);
        assert_eq!(words("CPU")[..], ["CPU", "s/GB", "-", "1.65", "18%"]);
        assert_eq!(words("client side")[3..], ["p", "5000", "3000", "9000", "7000"]);
    }

    #[test]
    fn json_holds_every_round_and_nothing_for_what_does_not_exist() {
        let json = report().to_json();
        let cpu = &json["figures"][1];
        assert_eq!(cpu["median"], json!({ "proxy": 1.65 }));
        assert_eq!(cpu["ratio_to_direct"], json!({}));
        assert_eq!(cpu["rounds"], json!({ "proxy": [1.5, 1.8] }));
        assert_eq!(json["figures"][0]["rounds"], json!({ "direct": [8.0, 10.0], "proxy": [2.0, 2.0] }));
        assert_eq!(json["processes"][0]["holding_kb"]["pss"], 7000);
    }

    #[test]
    fn numbers_keep_three_digits() {
        for (value, text) in
            [(0.2345, "0.23"), (9.999, "10.0"), (12.34, "12.3"), (99.97, "100"), (54321.0, "54321")]
        {
            assert_eq!(three_digits(value), text);
        }
    }
}

//! The measured values, and what follows from them.

/// Everything measured: a row for each quantity, a column for each path.
#[derive(Debug)]
pub(crate) struct Figures {
    /// The columns' names.
    pub(crate) paths: Vec<String>,
    pub(crate) rows: Vec<Row>,
}

/// One quantity.
#[derive(Debug)]
pub(crate) struct Row {
    /// Under which load, or other circumstances.
    pub(crate) load: String,
    /// What it is counted in. Together with `load` unique.
    pub(crate) unit: &'static str,
    /// For each path, the value of each round. Empty where the quantity does not exist.
    pub(crate) samples: Vec<Vec<f64>>,
}

impl Figures {
    pub(crate) fn new(paths: Vec<String>) -> Self {
        Self { paths, rows: Vec::new() }
    }

    /// Adds the value of one more round.
    pub(crate) fn record(&mut self, path: usize, load: &str, unit: &'static str, value: f64) {
        let found = self.rows.iter().position(|row| row.load == load && row.unit == unit);
        let at = found.unwrap_or_else(|| {
            let samples = vec![Vec::new(); self.paths.len()];
            self.rows.push(Row { load: load.to_owned(), unit, samples });
            self.rows.len() - 1
        });
        self.rows[at].samples[path].push(value);
    }

    /// The column that others are compared with.
    pub(crate) fn direct(&self) -> Option<usize> {
        self.paths.iter().position(|name| name == DIRECT)
    }
}

/// The name of the path without proxies.
pub(crate) const DIRECT: &str = "direct";

impl Row {
    pub(crate) fn median(&self, path: usize) -> Option<f64> {
        median(&self.samples[path])
    }

    /// The median of the ratios to another path within each round: what makes a whole round slow cancels out.
    pub(crate) fn ratio(&self, path: usize, base: usize) -> Option<f64> {
        let rounds = self.samples[path].iter().zip(&self.samples[base]);
        median(&rounds.map(|(value, base)| value / base).collect::<Vec<_>>())
    }

    /// How far the rounds of a path are apart, in parts of its median; the largest over all paths. None if there was
    /// only one round.
    pub(crate) fn spread(&self) -> Option<f64> {
        let repeated = self.samples.iter().filter(|values| values.len() > 1);
        let spreads = repeated.filter_map(|values| {
            let (low, high) = values
                .iter()
                .fold((f64::MAX, f64::MIN), |(low, high), value| (low.min(*value), high.max(*value)));
            Some((high - low) / median(values)?)
        });
        spreads.reduce(f64::max)
    }
}

fn median(values: &[f64]) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_unstable_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    match sorted.len() {
        0 => None,
        odd if odd % 2 == 1 => Some(sorted[middle]),
        _ => Some(f64::midpoint(sorted[middle - 1], sorted[middle])),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(samples: &[&[f64]]) -> Row {
        Row { load: String::new(), unit: "", samples: samples.iter().map(|values| values.to_vec()).collect() }
    }

    #[test]
    fn one_outlier_does_not_move_a_median() {
        assert_eq!(median(&[]), None);
        assert_eq!(median(&[3.0, 1.0]), Some(2.0));
        assert_eq!(median(&[9000.0, 1.0, 2.0]), Some(2.0));
    }

    #[test]
    fn a_slow_round_does_not_change_the_ratio() {
        let row = row(&[&[10.0, 2.0, 12.0], &[5.0, 1.0, 6.0], &[]]);
        assert_eq!(row.ratio(1, 0), Some(0.5));
        assert_eq!(row.ratio(2, 0), None);
        assert_eq!(row.ratio(0, 2), None);
    }

    #[test]
    fn the_spread_is_that_of_the_least_steady_path() {
        assert_eq!(row(&[&[10.0, 11.0, 10.0], &[4.0, 8.0, 10.0]]).spread(), Some(0.75));
        assert_eq!(row(&[&[10.0], &[4.0]]).spread(), None);
    }

    #[test]
    fn a_value_goes_to_the_row_of_its_load_and_unit() {
        let mut figures = Figures::new(vec!["x".to_owned(), DIRECT.to_owned()]);
        figures.record(1, "a", "s", 1.0);
        figures.record(1, "a", "ms", 2.0);
        figures.record(0, "a", "s", 3.0);
        figures.record(1, "a", "s", 4.0);
        assert_eq!(figures.direct(), Some(1));
        assert_eq!(figures.rows.len(), 2);
        assert_eq!(figures.rows[0].samples, [vec![3.0], vec![1.0, 4.0]]);
        assert_eq!(figures.rows[1].samples, [vec![], vec![2.0]]);
    }
}

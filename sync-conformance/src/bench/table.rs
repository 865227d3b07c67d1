//! How results are shown.

use std::fmt;

use super::Flavour;
use super::measure::Spread;

/// One result: what it is, what it came to, and what the raw commands or the rival came to.
#[derive(Debug)]
pub(super) struct Row {
    what: String,
    flavour: Flavour,
    value: Quantity,
    beside: Option<Quantity>,
    ratio: Option<Spread>,
    goal: Option<Goal>,
}

impl Row {
    pub(super) fn new(flavour: Flavour, what: impl Into<String>, value: Quantity) -> Self {
        Self { what: what.into(), flavour, value, beside: None, ratio: None, goal: None }
    }

    /// What the others came to, and the ratio, which is not the quotient of two medians but the
    /// median of the rounds' quotients.
    pub(super) fn beside(mut self, others: Quantity, ratio: impl Into<Option<Spread>>) -> Self {
        self.beside = Some(others);
        self.ratio = ratio.into();
        self
    }

    pub(super) fn goal(mut self, goal: impl Into<Option<Goal>>) -> Self {
        self.goal = goal.into();
        self
    }

    /// Whether something was measured at all.
    pub(super) fn is_sound(&self) -> bool {
        let number = self.value.number();
        let ratio = self.ratio.is_none_or(|ratio| ratio.median.is_finite() && ratio.median > 0.0);
        number.is_finite() && number >= 0.0 && ratio
    }

    fn verdict(&self) -> String {
        let Some(goal) = self.goal else { return String::new() };
        let reached = goal.is_met(self.ratio.map_or(self.value.number(), |ratio| ratio.median));
        format!("{goal} {}", if reached { "met" } else { "MISSED" })
    }

    fn cells(&self) -> [String; 6] {
        let ratio = self
            .ratio
            .map(|Spread { median, low, high }| format!("{median:.2} ({low:.2} to {high:.2})"));
        [
            self.what.clone(),
            self.flavour.name().to_owned(),
            self.value.to_string(),
            self.beside.map(|others| others.to_string()).unwrap_or_default(),
            ratio.unwrap_or_default(),
            self.verdict(),
        ]
    }
}

/// A number with its unit.
#[derive(Debug, Clone, Copy)]
pub(super) enum Quantity {
    /// In seconds.
    Time(f64),
    /// Each second.
    Rate(f64),
    Bytes(f64),
    Number(f64),
}

impl Quantity {
    fn number(self) -> f64 {
        let (Self::Time(n) | Self::Rate(n) | Self::Bytes(n) | Self::Number(n)) = self;
        n
    }
}

impl fmt::Display for Quantity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Time(seconds) if seconds < 0.01 => write!(f, "{:.0} us", seconds * 1e6),
            Self::Time(seconds) => write!(f, "{:.0} ms", seconds * 1e3),
            Self::Rate(rate) => write!(f, "{rate:.0}/s"),
            Self::Bytes(bytes) => write!(f, "{bytes:.0} B"),
            Self::Number(number) if number < 100.0 => write!(f, "{number:.2}"),
            Self::Number(number) => write!(f, "{number:.0}"),
        }
    }
}

/// What a ratio should be, or a value that has none.
#[derive(Debug, Clone, Copy)]
pub(super) enum Goal {
    AtMost(f64),
    AtLeast(f64),
}

impl Goal {
    fn is_met(self, number: f64) -> bool {
        match self {
            Self::AtMost(most) => number <= most,
            Self::AtLeast(least) => number >= least,
        }
    }
}

impl fmt::Display for Goal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AtMost(most) => write!(f, "<= {most:.2}"),
            Self::AtLeast(least) => write!(f, ">= {least:.2}"),
        }
    }
}

/// The table, in Markdown that also reads well as it is.
pub(super) fn show(facts: &[String], rows: &[Row]) -> String {
    let head = ["", "runtime", "here", "beside", "ratio (quartiles)", "goal"].map(str::to_owned);
    let lines: Vec<_> = std::iter::once(head).chain(rows.iter().map(Row::cells)).collect();
    let width = |column: usize| lines.iter().map(|line| line[column].len()).max().unwrap_or(0);
    let widths = [0, 1, 2, 3, 4, 5].map(width);
    let mut text = format!("{}\n", facts.join("; "));
    for (index, line) in lines.iter().enumerate() {
        text.push_str("\n|");
        for (column, (cell, width)) in line.iter().zip(widths).enumerate() {
            let cell = match column {
                2 | 3 => format!(" {cell:>width$} |"),
                _ => format!(" {cell:<width$} |"),
            };
            text.push_str(&cell);
        }
        if index == 0 {
            text.push_str("\n|");
            for (column, width) in widths.into_iter().enumerate() {
                let end = if matches!(column, 2 | 3) { ":" } else { "-" };
                text.push_str(&format!("{}{end}|", "-".repeat(width + 1)));
            }
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_goal_is_for_the_ratio_and_else_for_the_value() {
        let spread = Spread { median: 1.2, low: 1.1, high: 1.3 };
        let row = Row::new(Flavour::CurrentThread, "pair", Quantity::Time(100e-6))
            .beside(Quantity::Time(90e-6), spread)
            .goal(Goal::AtMost(1.1));
        let shares = Row::new(Flavour::MultiThread, "shares", Quantity::Number(0.9))
            .goal(Goal::AtLeast(0.8));
        assert!(row.is_sound() && shares.is_sound());
        let text = show(&["two cores".to_owned()], &[row, shares]);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[0], "two cores");
        assert!(
            lines[4].contains("100 us |  90 us | 1.20 (1.10 to 1.30) | <= 1.10 MISSED |"),
            "{text}"
        );
        assert!(lines[5].contains(">= 0.80 met"), "{text}");
        let lengths: Vec<usize> = lines[2..].iter().map(|line| line.len()).collect();
        assert!(lengths.iter().all(|length| *length == lengths[0]), "{text}");
    }

    #[test]
    fn what_was_not_measured_is_not_sound() {
        let row = Row::new(Flavour::CurrentThread, "pair", Quantity::Time(f64::NAN));
        assert!(!row.is_sound());
    }
}

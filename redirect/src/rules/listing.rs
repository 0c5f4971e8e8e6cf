//! Rules as a program lists them, and how two such lists differ.

use std::collections::BTreeMap;
use std::fmt;

use super::plan::RuleId;
use super::pod::Family;

/// Rules by the chain they stand in, in order, spelt as the program spells them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Listing {
    chains: BTreeMap<String, Vec<Line>>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Line {
    text: String,
    /// Known only for lists made from a plan.
    purpose: Option<RuleId>,
}

/// One thing that is not as it should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Difference {
    /// A chain without rules is missing.
    MissingChain {
        /// Which.
        chain: String,
    },
    /// A chain of ours that should not be there.
    UnexpectedChain {
        /// Which.
        chain: String,
    },
    /// A rule is missing, or was changed into an unexpected one.
    MissingRule {
        /// Where.
        chain: String,
        /// What for, if it is more than a jump.
        purpose: Option<RuleId>,
        /// As the program spells it.
        rule: String,
    },
    /// A rule that should not be there.
    UnexpectedRule {
        /// Where.
        chain: String,
        /// As the program spells it.
        rule: String,
    },
    /// The right rules in the wrong order.
    WrongOrder {
        /// Where.
        chain: String,
    },
    /// No policy rule sends marked replies to our table.
    MissingPolicyRule {
        /// For which packets.
        family: Family,
    },
    /// The table of replies has no route to the loopback interface.
    MissingRoute {
        /// For which packets.
        family: Family,
    },
}

impl Listing {
    /// Appends a rule, or with `None` only the chain.
    pub(super) fn push(&mut self, chain: &str, rule: Option<&str>) {
        let lines = self.chains.entry(chain.to_owned()).or_default();
        lines.extend(rule.map(|text| Line { text: text.to_owned(), purpose: None }));
    }

    /// Says what the rules of `chain` are for, in their order.
    pub(super) fn explain(&mut self, chain: &str, purposes: impl Iterator<Item = RuleId>) {
        for (line, purpose) in self.chains.get_mut(chain).into_iter().flatten().zip(purposes) {
            line.purpose = Some(purpose);
        }
    }

    pub(super) fn merge(&mut self, other: Listing) {
        self.chains.extend(other.chains);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.chains.is_empty()
    }

    /// What `actual` lacks, and what it has too much, compared with `self`.
    pub(super) fn differences(&self, actual: &Listing) -> Vec<Difference> {
        let mut differences = Vec::new();
        for (chain, expected) in &self.chains {
            match actual.chains.get(chain) {
                None if expected.is_empty() => {
                    differences.push(Difference::MissingChain { chain: chain.clone() });
                }
                // With its rules a chain is named, too.
                None => differences.extend(chain_differences(chain, expected, &[])),
                Some(actual) => differences.extend(chain_differences(chain, expected, actual)),
            }
        }
        let unexpected = actual.chains.keys().filter(|chain| !self.chains.contains_key(*chain));
        differences.extend(unexpected.map(|chain| Difference::UnexpectedChain { chain: chain.clone() }));
        differences
    }
}

fn chain_differences(chain: &str, expected: &[Line], actual: &[Line]) -> Vec<Difference> {
    let mut surplus: Vec<&str> = actual.iter().map(|line| line.text.as_str()).collect();
    let mut differences = Vec::new();
    for line in expected {
        match surplus.iter().position(|text| *text == line.text) {
            Some(found) => drop(surplus.remove(found)),
            None => differences.push(Difference::MissingRule {
                chain: chain.to_owned(),
                purpose: line.purpose,
                rule: line.text.clone(),
            }),
        }
    }
    differences.extend(
        surplus
            .into_iter()
            .map(|rule| Difference::UnexpectedRule { chain: chain.to_owned(), rule: rule.to_owned() }),
    );
    let same_order = expected.iter().zip(actual).all(|(expected, actual)| expected.text == actual.text);
    if differences.is_empty() && !same_order {
        differences.push(Difference::WrongOrder { chain: chain.to_owned() });
    }
    differences
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Difference::MissingChain { chain } => write!(f, "missing chain {chain}"),
            Difference::UnexpectedChain { chain } => write!(f, "unexpected chain {chain}"),
            Difference::MissingRule { chain, purpose: Some(purpose), rule } => {
                write!(f, "missing in {chain}: {rule} ({purpose})")
            }
            Difference::MissingRule { chain, purpose: None, rule } => write!(f, "missing in {chain}: {rule}"),
            Difference::UnexpectedRule { chain, rule } => write!(f, "unexpected in {chain}: {rule}"),
            Difference::WrongOrder { chain } => write!(f, "rules of {chain} are in the wrong order"),
            Difference::MissingPolicyRule { family } => {
                write!(f, "missing {family} policy rule: replies to the proxy leave the pod instead")
            }
            Difference::MissingRoute { family } => {
                write!(f, "missing {family} route for replies to the proxy: they leave the pod instead")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listing(chains: &[(&str, &[&str])]) -> Listing {
        let mut listing = Listing::default();
        for (chain, rules) in chains {
            listing.push(chain, None);
            rules.iter().for_each(|rule| listing.push(chain, Some(rule)));
        }
        listing
    }

    #[test]
    fn equal_lists_do_not_differ() {
        let one = listing(&[("a", &["x", "y", "x"]), ("b", &[])]);
        assert_eq!(one.differences(&one.clone()), []);
    }

    #[test]
    fn missing_surplus_and_swapped_rules_are_told_apart() {
        let mut expected = listing(&[("a", &["x", "y"]), ("b", &["x", "y"]), ("c", &["x"]), ("e", &[])]);
        expected.explain("a", [RuleId::P1, RuleId::P2].into_iter());
        let actual = listing(&[("a", &["x", "z", "x"]), ("b", &["y", "x"]), ("d", &[])]);
        let words: Vec<_> = expected.differences(&actual).iter().map(Difference::to_string).collect();
        let wanted = [
            "missing in a: y (P2: inbound TCP goes to the proxy)",
            "unexpected in a: z",
            "unexpected in a: x",
            "rules of b are in the wrong order",
            "missing in c: x",
            "missing chain e",
            "unexpected chain d",
        ];
        assert_eq!(words, wanted);
    }
}

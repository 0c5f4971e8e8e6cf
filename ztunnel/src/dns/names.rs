//! Which names of the mesh a name that a client asks for can mean.

use std::borrow::Cow;

/// A name that may stand for the one asked for, in lower case and without the final dot.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Alias {
    /// The name to look up.
    pub(crate) name: String,
    /// How many labels of the name asked for were left after a search domain was taken off its end; `None` when none
    /// was.
    pub(crate) stripped: Option<usize>,
}

/// Every alias of `name`, in the order in which they are tried, each once: the name, what Kubernetes expands it to, and
/// the same of what is left when a `search` domain is taken off, as the client's own resolver may have put it there.
pub(crate) fn aliases<S: AsRef<str>>(name: &str, namespace: &str, domain: &str, search: &[S]) -> Vec<Alias> {
    let mut aliases = Vec::with_capacity(8);
    add_with_expansions(&mut aliases, name, None, namespace, domain);
    for suffix in search {
        if let Some(rest) = strip(name, suffix.as_ref()) {
            add_with_expansions(&mut aliases, rest, Some(labels(rest)), namespace, domain);
        }
    }
    aliases
}

fn add_with_expansions(
    aliases: &mut Vec<Alias>,
    name: &str,
    stripped: Option<usize>,
    namespace: &str,
    domain: &str,
) {
    let mut add = |name: String| {
        if !aliases.iter().any(|alias| alias.name == name) {
            aliases.push(Alias { name, stripped });
        }
    };
    add(name.to_owned());
    let ends_in_svc = name.ends_with(".svc");
    match labels(name) {
        1 => add(format!("{name}.{namespace}.svc.{domain}")),
        2 => {
            add(format!("{name}.svc.{domain}"));
            add(format!("{name}.{namespace}.svc.{domain}"));
        }
        3 => {
            if ends_in_svc {
                add(format!("{name}.{domain}"));
            }
            add(format!("{name}.svc.{domain}"));
        }
        4 if ends_in_svc => add(format!("{name}.{domain}")),
        _ => {}
    }
}

/// The name without the search domain `suffix`, if it ends in it and something is left.
fn strip<'a>(name: &'a str, suffix: &str) -> Option<&'a str> {
    if suffix.is_empty() || suffix.starts_with('*') {
        return None;
    }
    name.strip_suffix(suffix)?.strip_suffix('.').filter(|rest| !rest.is_empty())
}

fn labels(name: &str) -> usize {
    name.split('.').count()
}

/// The name, then the wildcards that cover it, the longest first. A single label has none.
pub(crate) fn with_wildcards(name: &str) -> impl Iterator<Item = Cow<'_, str>> {
    let mut rest = name;
    let wildcards = std::iter::from_fn(move || {
        rest = rest.split_once('.')?.1;
        Some(Cow::Owned(format!("*.{rest}")))
    });
    std::iter::once(Cow::Borrowed(name)).chain(wildcards)
}

#[cfg(test)]
mod tests {
    use super::*;

    const DOMAIN: &str = "cluster.local";

    fn expanded(name: &str) -> Vec<String> {
        let all = aliases::<&str>(name, "ns", DOMAIN, &[]);
        all.into_iter().skip(1).map(|alias| alias.name).collect()
    }

    #[test]
    fn names_expand_by_their_number_of_labels() {
        assert_eq!(expanded("name"), ["name.ns.svc.cluster.local"]);
        assert_eq!(expanded("name.ns2"), ["name.ns2.svc.cluster.local", "name.ns2.ns.svc.cluster.local"]);
        let of_svc = ["name.ns2.svc.cluster.local", "name.ns2.svc.svc.cluster.local"];
        assert_eq!(expanded("name.ns2.svc"), of_svc);
        assert_eq!(expanded("www.google.com"), ["www.google.com.svc.cluster.local"]);
        assert_eq!(expanded("a.b.c.svc"), ["a.b.c.svc.cluster.local"]);
        assert!(expanded("name.ns2.svc.cluster").is_empty());
        assert!(expanded("name.ns2.svc.cluster.local").is_empty());
    }

    #[test]
    fn a_search_domain_is_taken_off_only_at_a_label_and_only_if_a_label_is_left() {
        assert_eq!(strip("name.ns.svc.cluster.local", "svc.cluster.local"), Some("name.ns"));
        assert_eq!(strip("name.ns.svc.cluster.local", "other.local"), None);
        assert_eq!(strip("svc.cluster.local", "svc.cluster.local"), None);
        assert_eq!(strip("namesvc.cluster.local", "svc.cluster.local"), None);
        assert_eq!(strip("name.example", "*.example"), None);
        assert_eq!(strip("name.example", ""), None);
    }

    #[test]
    fn aliases_come_in_order_and_once_and_remember_what_was_taken_off() {
        let search = ["ns.svc.cluster.local", "svc.cluster.local", DOMAIN];
        let all = aliases("web.ns.svc.cluster.local", "ns", DOMAIN, &search);
        let told: Vec<_> = all.iter().map(|alias| (&*alias.name, alias.stripped)).collect();
        let expected = [
            ("web.ns.svc.cluster.local", None),
            ("web", Some(1)),
            ("web.ns", Some(2)),
            ("web.ns.ns.svc.cluster.local", Some(2)),
            ("web.ns.svc", Some(3)),
            ("web.ns.svc.svc.cluster.local", Some(3)),
        ];
        assert_eq!(told, expected);
    }

    #[test]
    fn wildcards_go_from_the_longest_to_the_last_label() {
        assert_eq!(with_wildcards("a").collect::<Vec<_>>(), ["a"]);
        assert_eq!(with_wildcards("a.b.c").collect::<Vec<_>>(), ["a.b.c", "*.b.c", "*.c"]);
    }
}

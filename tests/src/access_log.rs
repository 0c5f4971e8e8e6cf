//! Reading the proxy's access log in its text form.

/// One line of the access log.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct AccessLine {
    /// `info`, `error` or `warn`.
    pub level: String,
    /// `connection complete`, `connection failed` or `connection opened`.
    pub message: String,
    /// Keys and values in the order written. Values that were quoted are here without quotes.
    pub fields: Vec<(String, String)>,
    /// The fields as written, to tell quoted values from bare ones.
    pub raw_fields: String,
}

impl AccessLine {
    /// Reads a log line: time, level, scope, message and fields, separated by tabs. None if it is not a line of the
    /// access log.
    pub fn parse(line: &str) -> Option<Self> {
        let mut columns = line.splitn(5, '\t');
        let (_time, level, scope) = (columns.next()?, columns.next()?, columns.next()?);
        let (message, raw_fields) = (columns.next()?, columns.next()?);
        (scope == "access").then(|| Self {
            level: level.to_owned(),
            message: message.to_owned(),
            fields: parse_fields(raw_fields),
            raw_fields: raw_fields.to_owned(),
        })
    }

    /// The value of a field.
    pub fn get(&self, key: &str) -> Option<&str> {
        self.fields.iter().find(|(name, _)| name == key).map(|(_, value)| value.as_str())
    }

    /// The value of a field, or the empty text if it is absent.
    pub fn text(&self, key: &str) -> &str {
        self.get(key).unwrap_or_default()
    }

    /// The keys in order.
    pub fn keys(&self) -> Vec<&str> {
        self.fields.iter().map(|(key, _)| key.as_str()).collect()
    }
}

/// `k=v k="quoted v" …`, with `\"` and `\\` inside quotes.
fn parse_fields(text: &str) -> Vec<(String, String)> {
    let mut fields = Vec::new();
    let mut rest = text.trim();
    while let Some((key, after)) = rest.split_once('=') {
        let (value, after) = match after.strip_prefix('"') {
            Some(quoted) => unquote(quoted),
            None => {
                let end = after.find(' ').unwrap_or(after.len());
                (after[..end].to_owned(), &after[end..])
            }
        };
        fields.push((key.to_owned(), value));
        rest = after.trim_start();
    }
    fields
}

/// The text up to the closing quote, and what follows it.
fn unquote(text: &str) -> (String, &str) {
    let mut value = String::new();
    let mut characters = text.char_indices();
    while let Some((at, character)) = characters.next() {
        match character {
            '"' => return (value, &text[at + 1..]),
            '\\' => value.extend(characters.next().map(|(_, escaped)| escaped)),
            other => value.push(other),
        }
    }
    (value, "")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_splits_into_its_columns_and_fields() {
        let line = "2031-05-01T08:00:03.120000Z\twarn\taccess\tconnection failed\tsrc.addr=10.8.3.4:37771 \
                    direction=\"outbound\" error=\"say \\\"no\\\" = no\"";
        let access = AccessLine::parse(line).unwrap();
        assert_eq!(access.level, "warn");
        assert_eq!(access.message, "connection failed");
        assert_eq!(access.keys(), ["src.addr", "direction", "error"]);
        assert_eq!(access.text("src.addr"), "10.8.3.4:37771");
        assert_eq!(access.text("error"), "say \"no\" = no");
    }

    #[test]
    fn other_scopes_are_no_access_lines() {
        assert_eq!(
            AccessLine::parse("t\tinfo\tproxy::inbound\tlistener established\taddress=[::]:15008"),
            None
        );
        assert_eq!(AccessLine::parse("no tabs at all"), None);
    }
}

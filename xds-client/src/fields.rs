//! Protobuf at the level of fields: what a message consists of, without its schema and without copies.
//!
//! "Message Structure" of the protobuf encoding guide. A message is a row of records: a key (number and wire type) and a
//! value whose extent follows from the wire type.

/// The deepest nesting of groups that is skipped. Groups are obsolete; this bounds the stack for those who send them.
const MAX_GROUP_DEPTH: u8 = 100;

/// The bytes are not a protobuf message of the expected form.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Malformed(pub(crate) &'static str);

/// The records of a message, in the order of the wire. Ends after the first error.
#[derive(Clone)]
pub(crate) struct Fields<'a> {
    rest: &'a [u8],
}

/// A record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Field<'a> {
    /// Its number; never 0.
    pub(crate) number: u32,
    value: Value<'a>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Value<'a> {
    LengthDelimited(&'a [u8]),
    /// Integers and groups: nothing that this crate walks has a use for them.
    Other,
}

impl<'a> Fields<'a> {
    pub(crate) fn new(message: &'a [u8]) -> Self {
        Self { rest: message }
    }

    /// How many bytes are still to be walked.
    pub(crate) fn remaining(&self) -> usize {
        self.rest.len()
    }

    fn field(&mut self) -> Result<Field<'a>, Malformed> {
        let (number, wire_type) = self.key()?;
        let value = match wire_type {
            2 => Value::LengthDelimited(self.length_delimited()?),
            _ => {
                self.skip(number, wire_type, 0)?;
                Value::Other
            }
        };
        Ok(Field { number, value })
    }

    fn key(&mut self) -> Result<(u32, u8), Malformed> {
        let key = u32::try_from(self.varint()?).map_err(|_| Malformed("field number out of range"))?;
        match key >> 3 {
            0 => Err(Malformed("field number 0")),
            number => Ok((number, (key & 7) as u8)),
        }
    }

    fn varint(&mut self) -> Result<u64, Malformed> {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let byte = self.take(1)?[0];
            if shift == 63 && byte > 1 {
                return Err(Malformed("integer of more than 64 bits"));
            }
            value |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Ok(value);
            }
        }
        Err(Malformed("integer of more than ten bytes"))
    }

    fn length_delimited(&mut self) -> Result<&'a [u8], Malformed> {
        let length = self.varint()?;
        self.take(usize::try_from(length).unwrap_or(usize::MAX))
    }

    fn skip(&mut self, number: u32, wire_type: u8, depth: u8) -> Result<(), Malformed> {
        match wire_type {
            0 => self.varint().map(drop),
            1 => self.take(8).map(drop),
            2 => self.length_delimited().map(drop),
            3 if depth == MAX_GROUP_DEPTH => Err(Malformed("groups nested too deeply")),
            3 => loop {
                match self.key()? {
                    (end, 4) if end == number => return Ok(()),
                    (_, 4) => return Err(Malformed("end of another group")),
                    (inner, wire_type) => self.skip(inner, wire_type, depth + 1)?,
                }
            },
            4 => Err(Malformed("end of a group that did not begin")),
            5 => self.take(4).map(drop),
            _ => Err(Malformed("unknown wire type")),
        }
    }

    fn take(&mut self, length: usize) -> Result<&'a [u8], Malformed> {
        let (taken, rest) = self.rest.split_at_checked(length).ok_or(Malformed("cut off"))?;
        self.rest = rest;
        Ok(taken)
    }
}

impl<'a> Iterator for Fields<'a> {
    type Item = Result<Field<'a>, Malformed>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let field = self.field();
        if field.is_err() {
            self.rest = &[];
        }
        Some(field)
    }
}

impl<'a> Field<'a> {
    /// The value of a field that the schema declares as bytes or as a message.
    pub(crate) fn bytes(self) -> Result<&'a [u8], Malformed> {
        match self.value {
            Value::LengthDelimited(bytes) => Ok(bytes),
            Value::Other => Err(Malformed("wire type does not fit the field")),
        }
    }

    /// The value of a field that the schema declares as a string.
    pub(crate) fn text(self) -> Result<&'a str, Malformed> {
        str::from_utf8(self.bytes()?).map_err(|_| Malformed("text that is not UTF-8"))
    }
}

/// Appends a string, bytes or message field.
pub(crate) fn append(message: &mut Vec<u8>, number: u32, value: &[u8]) {
    append_varint(message, u64::from(number << 3 | 2));
    append_varint(message, value.len() as u64);
    message.extend_from_slice(value);
}

fn append_varint(message: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        message.push((value & 0x7f) as u8 | 0x80);
        value >>= 7;
    }
    message.push(value as u8);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn walk(message: &[u8]) -> Result<Vec<Field<'_>>, Malformed> {
        Fields::new(message).collect()
    }

    #[test]
    fn every_wire_type_is_walked_and_strings_are_slices() {
        let message =
            b"\x08\x96\x01\x11\x01\x02\x03\x04\x05\x06\x07\x08\x1a\x02hi\x23\x08\x01\x24\x2d\x01\x02\x03\x04";
        let fields = walk(message).unwrap();
        assert_eq!(fields.iter().map(|field| field.number).collect::<Vec<_>>(), [1, 2, 3, 4, 5]);
        assert_eq!(fields[2].text(), Ok("hi"));
        assert!(fields[0].bytes().is_err(), "an integer is not text");
    }

    #[test]
    fn malformed_records_are_errors() {
        for (bytes, fault) in [
            (b"\x0a\x05ab".as_slice(), "a length beyond the end"),
            (b"\x02\x00", "field number 0"),
            (b"\x0e", "wire type 6"),
            (b"\x08\xff\xff\xff\xff\xff\xff\xff\xff\xff\x02", "65 bits"),
            (b"\x08\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01", "eleven bytes"),
            (b"\xff\xff\xff\xff\x7f\x00", "a key of 35 bits"),
            (b"\x0b\x08\x01", "a group without an end"),
            (b"\x0b\x14", "the end of another group"),
            (b"\x0c", "an end without a group"),
            (b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01", "a length beyond any memory"),
        ] {
            assert!(walk(bytes).is_err(), "{fault} was accepted");
        }
        assert!(walk(&[0x0b; 200]).is_err(), "bottomless groups were accepted");
    }

    #[test]
    fn what_is_appended_is_what_is_walked() {
        let long = vec![b'x'; 300];
        let mut message = Vec::new();
        append(&mut message, 3, b"*");
        append(&mut message, 100, &long);
        let fields = walk(&message).unwrap();
        assert_eq!((fields[0].number, fields[0].bytes()), (3, Ok(b"*".as_slice())));
        assert_eq!((fields[1].number, fields[1].bytes()), (100, Ok(long.as_slice())));
    }
}

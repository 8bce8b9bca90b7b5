//! JSON as requests are read from it, whatever they are read into: objects are objects, and null is absent.
//!
//! Serde fills a struct from a list, place by place, which no client means: here only an object does. A member that is
//! null and not known counts as absent, as known ones do, because clients write out all fields that their own types
//! have. Nothing is buffered. The content of enums passes through as it is.

use std::fmt;

use serde::Deserializer;
use serde::de::{DeserializeSeed, EnumAccess, Error, IgnoredAny, IntoDeserializer, MapAccess, SeqAccess, Visitor};

/// Reads from another deserializer by these rules.
pub struct RequestJson<D>(pub D);

/// Methods that only pass on what they are given.
macro_rules! passed_on {
    ($($method:ident($($argument:ident: $type:ty),*),)*) => {
        $(fn $method<V: Visitor<'de>>(self, $($argument: $type,)* visitor: V) -> Result<V::Value, D::Error> {
            self.0.$method($($argument,)* Inside(visitor))
        })*
    };
}

impl<'de, D: Deserializer<'de>> Deserializer<'de> for RequestJson<D> {
    type Error = D::Error;

    passed_on! {
        deserialize_any(), deserialize_bool(), deserialize_i8(), deserialize_i16(), deserialize_i32(),
        deserialize_i64(), deserialize_i128(), deserialize_u8(), deserialize_u16(), deserialize_u32(),
        deserialize_u64(), deserialize_u128(), deserialize_f32(), deserialize_f64(), deserialize_char(),
        deserialize_str(), deserialize_string(), deserialize_bytes(), deserialize_byte_buf(), deserialize_option(),
        deserialize_unit(), deserialize_unit_struct(name: &'static str),
        deserialize_newtype_struct(name: &'static str), deserialize_seq(), deserialize_tuple(len: usize),
        deserialize_tuple_struct(name: &'static str, len: usize), deserialize_map(), deserialize_identifier(),
        deserialize_enum(name: &'static str, variants: &'static [&'static str]),
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, D::Error> {
        self.0.deserialize_map(Object { visitor, fields })
    }

    fn deserialize_ignored_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, D::Error> {
        self.0.deserialize_ignored_any(visitor)
    }

    fn is_human_readable(&self) -> bool {
        self.0.is_human_readable()
    }
}

/// A visitor, seed or access whose values inside are read by the same rules.
struct Inside<T>(T);

/// Methods that only pass on a value without parts.
macro_rules! told {
    ($($method:ident: $type:ty,)*) => {
        $(fn $method<E: Error>(self, value: $type) -> Result<V::Value, E> {
            self.0.$method(value)
        })*
    };
}

impl<'de, V: Visitor<'de>> Visitor<'de> for Inside<V> {
    type Value = V::Value;

    told! {
        visit_bool: bool, visit_i64: i64, visit_i128: i128, visit_u64: u64, visit_u128: u128, visit_f64: f64,
        visit_char: char, visit_str: &str, visit_borrowed_str: &'de str, visit_string: String, visit_bytes: &[u8],
        visit_borrowed_bytes: &'de [u8], visit_byte_buf: Vec<u8>,
    }

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        self.0.expecting(f)
    }

    fn visit_none<E: Error>(self) -> Result<V::Value, E> {
        self.0.visit_none()
    }

    fn visit_unit<E: Error>(self) -> Result<V::Value, E> {
        self.0.visit_unit()
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<V::Value, D::Error> {
        self.0.visit_some(RequestJson(deserializer))
    }

    fn visit_newtype_struct<D: Deserializer<'de>>(self, deserializer: D) -> Result<V::Value, D::Error> {
        self.0.visit_newtype_struct(RequestJson(deserializer))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, seq: A) -> Result<V::Value, A::Error> {
        self.0.visit_seq(Inside(seq))
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<V::Value, A::Error> {
        self.0.visit_map(Inside(map))
    }

    fn visit_enum<A: EnumAccess<'de>>(self, data: A) -> Result<V::Value, A::Error> {
        self.0.visit_enum(data)
    }
}

impl<'de, S: DeserializeSeed<'de>> DeserializeSeed<'de> for Inside<S> {
    type Value = S::Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<S::Value, D::Error> {
        self.0.deserialize(RequestJson(deserializer))
    }
}

impl<'de, A: SeqAccess<'de>> SeqAccess<'de> for Inside<A> {
    type Error = A::Error;

    fn next_element_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<Option<S::Value>, A::Error> {
        self.0.next_element_seed(Inside(seed))
    }

    fn size_hint(&self) -> Option<usize> {
        self.0.size_hint()
    }
}

impl<'de, A: MapAccess<'de>> MapAccess<'de> for Inside<A> {
    type Error = A::Error;

    fn next_key_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<Option<S::Value>, A::Error> {
        self.0.next_key_seed(seed)
    }

    fn next_value_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<S::Value, A::Error> {
        self.0.next_value_seed(Inside(seed))
    }

    fn size_hint(&self) -> Option<usize> {
        self.0.size_hint()
    }
}

/// The visitor of a struct, which takes an object and nothing else.
struct Object<V> {
    visitor: V,
    fields: &'static [&'static str],
}

impl<'de, V: Visitor<'de>> Visitor<'de> for Object<V> {
    type Value = V::Value;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<V::Value, A::Error> {
        self.visitor.visit_map(Members { map: Inside(map), fields: self.fields, is_skipped: false })
    }
}

/// The members of an object, without those that are null and not known.
struct Members<A> {
    map: A,
    fields: &'static [&'static str],
    /// The value that comes next has been skipped, since the struct does not know its name.
    is_skipped: bool,
}

impl<'de, A: MapAccess<'de>> MapAccess<'de> for Members<A> {
    type Error = A::Error;

    fn next_key_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<Option<S::Value>, A::Error> {
        while let Some(name) = self.map.next_key::<String>()? {
            self.is_skipped = !self.fields.contains(&name.as_str());
            let is_absent = self.is_skipped && self.map.next_value::<Option<IgnoredAny>>()?.is_none();
            if !is_absent {
                return seed.deserialize(name.into_deserializer()).map(Some);
            }
        }
        Ok(None)
    }

    fn next_value_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<S::Value, A::Error> {
        if self.is_skipped {
            return seed.deserialize(().into_deserializer());
        }
        self.map.next_value_seed(seed)
    }
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;
    use serde_json::{Map, Value, json};

    use super::*;

    #[derive(Debug, Default, PartialEq, Deserialize)]
    #[serde(deny_unknown_fields, default)]
    struct Outer {
        #[serde(alias = "count")]
        n: Option<u32>,
        inner: Option<Inner>,
        list: Vec<Inner>,
        values: Map<String, Value>,
    }

    #[derive(Debug, Default, PartialEq, Deserialize)]
    #[serde(default)]
    struct Inner {
        text: Option<String>,
    }

    fn read(text: &str) -> Result<Outer, serde_json::Error> {
        Outer::deserialize(RequestJson(&mut serde_json::Deserializer::from_str(text)))
    }

    #[test]
    fn objects_are_read_as_ever() {
        let text =
            r#"{"count":3,"inner":{"text":"a","more":[1]},"list":[{"text":"b"},{}],"values":{"x":[null,{"y":1.5}]}}"#;
        let inner = |text: Option<&str>| Inner { text: text.map(str::to_owned) };
        let expected = Outer {
            n: Some(3),
            inner: Some(inner(Some("a"))),
            list: vec![inner(Some("b")), inner(None)],
            values: json!({"x": [null, {"y": 1.5}]}).as_object().cloned().expect("an object"),
        };
        assert_eq!(read(text).expect("valid"), expected);
    }

    #[test]
    fn lists_are_not_objects_at_any_depth() {
        for text in ["[]", "[3]", r#"{"inner":["a"]}"#, r#"{"list":[["a"]]}"#, r#"{"inner":"a"}"#, "7"] {
            let error = read(text).expect_err("must be refused").to_string();
            assert!(error.contains("expected an object at line 1"), "{text}: {error}");
        }
    }

    #[test]
    fn null_members_are_absent_whether_known_or_not() {
        let text = r#"{"n":null,"unknown":null,"inner":{"other":null,"text":null},"unknown":null}"#;
        assert_eq!(read(text).expect("valid"), Outer { inner: Some(Inner::default()), ..Outer::default() });
    }

    #[test]
    fn other_unknown_members_are_what_the_type_makes_of_them() {
        let error = read(r#"{"unknown":{"a":[1]},"n":1}"#).expect_err("must be refused").to_string();
        assert!(error.starts_with("unknown field `unknown`"), "{error}");
        assert!(read(r#"{"inner":{"other":{"a":[1]},"text":"a"},"n":1}"#).is_ok_and(|outer| outer.n == Some(1)));
    }
}

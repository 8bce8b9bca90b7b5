//! Makes templates written for transformers readable for minijinja.
//!
//! `{% generation %}` marks what an assistant said, for training; it changes nothing in a prompt, and becomes
//! `{% if true %}` here, which treats the white space around it in the same way.

/// Rewrites the `generation` blocks of a template; everything else stays as it is.
pub(crate) fn without_generation_blocks(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    let mut inside_raw = false;
    while let Some(open) = rest.find('{') {
        let (before, at) = rest.split_at(open);
        out.push_str(before);
        let length = if at.starts_with("{#") && !inside_raw {
            at.find("#}").map_or(at.len(), |end| end + 2)
        } else if at.starts_with("{%") {
            tag_length(at)
        } else {
            1
        };
        let (tag, after) = at.split_at(length);
        match tag_name(tag) {
            Some("raw") => inside_raw = true,
            Some("endraw") => inside_raw = false,
            _ => {}
        }
        match tag_name(tag) {
            Some("generation") if !inside_raw => out.push_str(&tag.replacen("generation", "if true", 1)),
            Some("endgeneration") if !inside_raw => out.push_str(&tag.replacen("endgeneration", "endif", 1)),
            _ => out.push_str(tag),
        }
        rest = after;
    }
    out.push_str(rest);
    out
}

/// A piece of a template.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Tag<'a> {
    /// Text, comments, and what stands in `raw` blocks.
    Text(&'a str),
    /// `{{ … }}` or `{% … %}`.
    Code(&'a str),
}

/// The pieces of a template, in order.
pub(crate) fn tags(source: &str) -> Vec<Tag<'_>> {
    let (mut tags, mut rest, mut inside_raw) = (Vec::new(), source, false);
    while let Some(open) = rest.find('{') {
        let at = &rest[open..];
        let is_code = at.starts_with("{%") || at.starts_with("{{") && !inside_raw;
        let length = match () {
            () if at.starts_with("{#") && !inside_raw => at.find("#}").map_or(at.len(), |end| end + 2),
            () if at.starts_with("{%") => tag_length(at),
            () if is_code => expression_length(at),
            () => 1,
        };
        let (before, code) = (&rest[..open], &at[..length]);
        tags.push(Tag::Text(before));
        let name = tag_name(code);
        inside_raw = (inside_raw || name == Some("raw")) && name != Some("endraw");
        tags.push(if is_code && !inside_raw { Tag::Code(code) } else { Tag::Text(code) });
        rest = &at[length..];
    }
    tags.push(Tag::Text(rest));
    tags
}

/// The bytes from `{{` to `}}`, whatever stands in strings and brackets between them.
fn expression_length(tag: &str) -> usize {
    let bytes = tag.as_bytes();
    let (mut index, mut quote, mut depth) = (2, None, 0_usize);
    while index < bytes.len() {
        match (quote, bytes[index]) {
            (None, b'}') if depth == 0 && bytes.get(index + 1) == Some(&b'}') => return index + 2,
            (None, byte @ (b'"' | b'\'')) => quote = Some(byte),
            (None, b'(' | b'[' | b'{') => depth += 1,
            (None, b')' | b']' | b'}') => depth = depth.saturating_sub(1),
            (Some(_), b'\\') => index += 1,
            (Some(open), byte) if open == byte => quote = None,
            _ => {}
        }
        index += 1;
    }
    tag.len()
}

/// The only word of a tag such as `{%- endraw -%}`.
fn tag_name(tag: &str) -> Option<&str> {
    let inner = tag.strip_prefix("{%")?.strip_suffix("%}")?;
    let inner = inner.strip_prefix(['-', '+']).unwrap_or(inner);
    let inner = inner.strip_suffix(['-', '+']).unwrap_or(inner).trim();
    inner.bytes().all(|byte| byte.is_ascii_alphabetic()).then_some(inner)
}

/// The bytes from `{%` to `%}`, whatever stands in strings between them.
fn tag_length(tag: &str) -> usize {
    let bytes = tag.as_bytes();
    let (mut index, mut quote) = (2, None);
    while index < bytes.len() {
        match (quote, bytes[index]) {
            (None, b'%') if bytes.get(index + 1) == Some(&b'}') => return index + 2,
            (None, byte @ (b'"' | b'\'')) => quote = Some(byte),
            (Some(_), b'\\') => index += 1,
            (Some(open), byte) if open == byte => quote = None,
            _ => {}
        }
        index += 1;
    }
    tag.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn generation_blocks_keep_their_white_space_control() {
        let source = "{%- generation -%}\n x {% endgeneration +%}";
        assert_eq!(without_generation_blocks(source), "{%- if true -%}\n x {% endif +%}");
    }

    #[test]
    fn strings_comments_and_raw_blocks_stay() {
        for source in [
            "{# {% generation %} #}",
            "{% raw %}{% generation %}{% endraw %}",
            "{% set x = '%} {% generation %}' %}",
            "{{ {'a': 1} }} { {% unfinished",
        ] {
            assert_eq!(without_generation_blocks(source), source);
        }
    }
}

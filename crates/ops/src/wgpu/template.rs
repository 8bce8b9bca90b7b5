//! Shader text with constants: the few lines of preprocessing that WGSL lacks.
//!
//! - `$NAME` is the constant's value.
//! - `#if NAME` … `#else` … `#end` keeps one branch; a constant holds unless it is 0.
//! - `#for I in COUNT` … `#end` repeats its lines with `$I` from 0; `COUNT` is a constant or a number. Compilers unroll
//!   what they like; named registers are certain.
//! - `@binding(_)` becomes the next binding number, in the order of the kept lines.

/// Constants by name.
pub(super) type Constants = Vec<(&'static str, u32)>;

/// The shader of `text` with these constants.
///
/// # Panics
/// When a constant is missing or the blocks do not match: a mistake in a shader of this crate.
pub(super) fn render(text: &str, constants: &Constants) -> String {
    let lines: Vec<&str> = text.lines().collect();
    let mut scope: Vec<(&str, u32)> = constants.clone();
    let mut out = String::with_capacity(2 * text.len());
    let end = block(&lines, 0, &mut scope, Some(&mut out));
    assert_eq!(end, lines.len(), "a shader has an `#end` or `#else` too many");
    number_bindings(&out)
}

/// Renders lines from `at` up to the end of their block; returns where that is. Without `out` the lines are skipped.
fn block<'a>(lines: &[&'a str], mut at: usize, scope: &mut Vec<(&'a str, u32)>, mut out: Option<&mut String>) -> usize {
    while at < lines.len() {
        let words: Vec<&str> = lines[at].split_whitespace().collect();
        match words.as_slice() {
            ["#else"] | ["#end"] => return at,
            ["#if", name] => {
                let holds = out.is_some() && lookup(scope, name) != 0;
                at = block(lines, at + 1, scope, out.as_deref_mut().filter(|_| holds));
                if lines.get(at).map(|line| line.trim()) == Some("#else") {
                    at = block(lines, at + 1, scope, out.as_deref_mut().filter(|_| !holds));
                }
            }
            ["#for", name, "in", count] => {
                let end = block(lines, at + 1, scope, None);
                if let Some(out) = out.as_deref_mut() {
                    let count = count.parse().unwrap_or_else(|_| lookup(scope, count));
                    for value in 0..count {
                        scope.push((name, value));
                        block(lines, at + 1, scope, Some(out));
                        scope.pop();
                    }
                }
                at = end;
            }
            _ => {
                if let Some(out) = out.as_deref_mut() {
                    substitute(lines[at], scope, out);
                }
            }
        }
        at += 1;
    }
    at
}

/// Appends `line` with every `$NAME` replaced. A name is the longest known one, so that `sum$M0` and `$COUNTu` work.
fn substitute(line: &str, scope: &[(&str, u32)], out: &mut String) {
    let mut parts = line.split('$');
    out.push_str(parts.next().unwrap_or_default());
    for part in parts {
        let known = scope.iter().map(|(name, _)| *name).filter(|name| part.starts_with(name));
        let name = known.max_by_key(|name| name.len()).unwrap_or(part);
        out.push_str(&lookup(scope, name).to_string());
        out.push_str(&part[name.len()..]);
    }
    out.push('\n');
}

fn lookup(scope: &[(&str, u32)], name: &str) -> u32 {
    let found = scope.iter().rev().find(|(known, _)| *known == name);
    found.unwrap_or_else(|| panic!("a shader uses `{name}`, which its launch does not give")).1
}

fn number_bindings(text: &str) -> String {
    let mut parts = text.split("@binding(_)");
    let mut out = parts.next().unwrap_or_default().to_string();
    for (number, part) in parts.enumerate() {
        out.push_str(&format!("@binding({number})"));
        out.push_str(part);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn branches_loops_values_and_bindings_are_expanded() {
        let text = "\
#if SCALED
@binding(_) scale$COUNTu
#else
@binding(_) plain
#end
@binding(_) x
#for M in COUNT
#for N in 2
sum$M$N = $M_MAX + $M0;
#end
#end";
        let rendered = render(text, &vec![("SCALED", 0), ("COUNT", 2), ("M_MAX", 7)]);
        let expected =
            "@binding(0) plain\n@binding(1) x\nsum00 = 7 + 00;\nsum01 = 7 + 00;\nsum10 = 7 + 10;\nsum11 = 7 + 10;\n";
        assert_eq!(rendered, expected);
        let rendered = render(text, &vec![("SCALED", 1), ("COUNT", 0), ("M_MAX", 7)]);
        assert_eq!(rendered, "@binding(0) scale0u\n@binding(1) x\n");
    }
}

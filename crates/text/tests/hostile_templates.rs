//! A hundred templates that mean harm: each is refused, soon, and in little memory.

use std::time::{Duration, Instant};

use firebrick_text::{ChatTemplate, Message, RenderOptions, SpecialTokens};

/// Memory that a template may take until it is refused.
const MEMORY_MAX_KB: u64 = 64 << 10;
/// Time on the processor; a quarter of a second in a release build, which this is not.
const TIME_MAX: Duration = Duration::from_millis(1500);

/// Expressions that make more of `X`.
const GROWING: [&str; 17] = [
    "X ~ X",
    "X + X",
    "X * 2",
    "(X) * (2)",
    "(X, X) | join('')",
    "[X, X] | join",
    "[X, X] | string",
    "[X, X] | tojson",
    "[X, X]",
    "(X, X)",
    "{'a': X, 'b': X}",
    "X ~ [X]",
    "X | string | replace('x', 'xx')",
    "(X ~ '').replace('x', 'xx')",
    "''.join([X, X])",
    "'%s%s' | format(X, X)",
    "X ~ (X if true else X)",
];

/// Ways to make more of it again and again; `GROW` and `X` are put in.
fn ways() -> Vec<String> {
    let start = "{% set n = namespace(x='x') %}";
    vec![
        format!("{start}{{% for i in range(64) %}}{{% set n.x = GROW(n.x) %}}{{% endfor %}}{{{{ n.x == n.x }}}}"),
        format!("{{% set x = 'x' %}}{}{{{{ x | length }}}}", "{% set x = GROW(x) %}".repeat(64)),
        "{% macro m(x, d) %}{{ m(GROW(x), d + 1) }}{% endmacro %}{{ m('x', 0) }}".to_owned(),
        format!("{{% set x = 'x' %}}{}{}", "{% with x = GROW(x) %}".repeat(40), "{% endwith %}".repeat(40)),
        format!("{{% set x = 'x' %}}{}{}", "{% for x in [GROW(x)] %}".repeat(40), "{% endfor %}".repeat(40)),
        format!(
            "{start}{{% for i in range(64) %}}{{% set y %}}{{{{ GROW(n.x) }}}}{{% endset %}}{{% set n.x = y %}}{{% endfor %}}"
        ),
    ]
}

fn grown(way: &str, growing: &str) -> String {
    let mut out = way.to_owned();
    for name in ["n.x", "x"] {
        out = out.replace(&format!("GROW({name})"), &growing.replace('X', name));
    }
    out
}

/// What needs no growing.
const AT_ONCE: [&str; 30] = [
    "{{ 'x' * 99999999 }}",
    "{% set x = 'x' * 90000000 %}",
    "{% set x = 90000000 * 'x' %}",
    "{% for i in range(200) %}{% set x = 'x' * 1000000 %}{% endfor %}",
    "{{ ([0] * 99999999) | list | length }}",
    "{{ ('x' * 30000000) | list | length }}",
    "{% for c in 'x' * 30000000 %}{% endfor %}",
    "{{ range(99999) | join('x' * 100000) | length }}",
    "{{ ('x' * 99999).replace('x', 'x' * 99999) | length }}",
    "{{ ('x' * 99999) | replace('x', 'x' * 99999) | length }}",
    "{{ ('x' * 99999).replace('', 'x' * 99999) | length }}",
    "{{ 'a\\nb' | indent(99999999999) }}",
    "{{ 'a\\nb' | indent(width=99999999999) }}",
    "{{ '%99999999999s' | format('x') }}",
    "{{ '%.99999999999f' | format(1.0) }}",
    "{{ [1] | batch(99999999999, 0) | list }}",
    "{{ [1] | slice(99999999999) | list }}",
    "{% set n = namespace(x=[]) %}{% for i in range(99999) %}{% set n.x = [n.x] %}{% endfor %}",
    "{% set n = namespace(x={}) %}{% for i in range(99999) %}{% set n.x = {'a': n.x} %}{% endfor %}",
    "{% set n = namespace(x=[]) %}{% for i in range(99999) %}{% set n.x = n.x + ['x' * 1000] %}{% endfor %}",
    "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "{% for a in range(99999) %}{{ 'x' * 1000 }}{% endfor %}",
    "{% for a in range(99999999999) %}{% endfor %}",
    "{% macro m() %}{{ m() }}{{ m() }}{% endmacro %}{{ m() }}",
    "{{ 'x' * 9 * 9 * 9 * 9 * 9 * 9 * 9 * 9 * 9 * 9 * 9 }}",
    "{{ 10 ** 9 * 'x' }}",
    "{{ messages | tojson(indent=99999999) }}",
    "{% include 'chat_template' %}",
    "{{ ''.__class__.__mro__ }}",
    "{{ cycler.__init__.__globals__ }}",
];

/// Kilobytes from `/proc/self/status`.
fn memory(name: &str) -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    status.lines().find_map(|line| line.strip_prefix(name))?.trim().trim_end_matches(" kB").parse().ok()
}

/// The time for which this thread has had a processor, where the system says.
fn computed() -> Option<Duration> {
    let times = std::fs::read_to_string("/proc/thread-self/schedstat").ok()?;
    times.split(' ').next()?.parse().ok().map(Duration::from_nanos)
}

#[test]
fn a_hundred_hostile_templates_are_refused_in_time_and_in_little_memory() {
    let ways = ways();
    let growing = ways.iter().flat_map(|way| GROWING.iter().map(move |growing| grown(way, growing)));
    let hostile: Vec<String> = growing.chain(AT_ONCE.iter().map(|&template| template.to_owned())).collect();
    assert!(hostile.len() >= 100);
    let (mut slowest, mut largest) = (Duration::ZERO, 0);
    for source in &hostile {
        let before = memory("VmRSS:");
        // The highest point is counted anew; where that is not allowed, memory is not checked.
        let is_reset = std::fs::write("/proc/self/clear_refs", "5").is_ok();
        let (begun, computed_before) = (Instant::now(), computed());
        let answer = ChatTemplate::new(source, SpecialTokens::default())
            .and_then(|template| template.render(&[Message::new("user", "Hi")], &RenderOptions::default()));
        let took = computed().zip(computed_before).map_or(begun.elapsed(), |(after, before)| after - before);
        assert!(answer.is_err(), "{source} gave {} bytes", answer.map_or(0, |text| text.len()));
        assert!(took < TIME_MAX, "{took:?}: {source}");
        slowest = slowest.max(took);
        if let (Some(before), Some(peak), true) = (before, memory("VmHWM:"), is_reset) {
            let grown = peak.saturating_sub(before);
            assert!(grown <= MEMORY_MAX_KB, "{grown} KB: {source}");
            largest = largest.max(grown);
        }
    }
    println!("{} templates refused, the slowest in {slowest:?}, the largest with {largest} KB", hostile.len());
}

#[test]
fn what_templates_usually_do_is_well_within_the_limits() {
    let source = "{% set n = namespace(text='') %}{% for m in messages %}{% set line = '<' ~ m.role ~ '>' + m.content | trim %}\
                  {% set n.text = n.text + line %}{% if loop.last %}{{ n.text }}{{ '-' * 40 }}{% endif %}{% endfor %}";
    let template = ChatTemplate::new(source, SpecialTokens::default()).expect("valid");
    let messages: Vec<Message> = (0..100).map(|_| Message::new("user", "word ".repeat(500))).collect();
    let prompt = template.render(&messages, &RenderOptions::default()).expect("a long conversation");
    assert_eq!(prompt.len(), 100 * ("<user>".len() + 2499) + 40);
}

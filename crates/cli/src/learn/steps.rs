//! The ten steps. Each measures here, states a claim, and says whether it holds.

use firebrick_engine::EngineSnapshot;

use super::classroom::{Admission, Ask, Classroom};
use super::{Finding, comparison, drawing};
use crate::bench::Sample;
use crate::failure::Failure;
use crate::output::size;

/// One step of the lesson.
pub struct Step {
    /// What it is about.
    pub title: &'static str,
    /// What is to be seen.
    pub text: &'static str,
    /// Measures it.
    pub run: fn(&mut Classroom) -> Result<Finding, Failure>,
}

/// The lesson.
pub const STEPS: [Step; 10] = [
    Step { title: "the device", text: "Where the model computes.", run: device },
    Step {
        title: "loading and memory",
        text: "Weights are read once; what is left is for keys and values.",
        run: memory,
    },
    Step {
        title: "paging",
        text: "Keys and values lie in blocks. A request takes a block when it needs one, and gives all back.",
        run: paging,
    },
    Step { title: "sampling", text: "Temperature 0 takes the most likely token; higher ones draw.", run: sampling },
    Step {
        title: "batching",
        text: "A step reads every weight once, for however many requests are in it.",
        run: batching,
    },
    Step {
        title: "continuous batching",
        text: "A request joins and leaves the batch at any step, instead of waiting for the slowest of its group.",
        run: continuous,
    },
    Step {
        title: "looking at answers",
        text: "What came out, and what did not have to be computed again.",
        run: analysis,
    },
    Step { title: "streaming", text: "A token is shown as soon as its step has run.", run: streaming },
    Step { title: "a benchmark", text: "Sixteen requests at once.", run: benchmark },
    Step { title: "summary", text: "What the engine has done in this lesson.", run: summary },
];

const TEXTS: [&str; 5] =
    ["The capital of France is", "Water boils at", "The moon is", "A good recipe begins with", "Once upon a time"];

fn finding(lines: Vec<String>, claim: impl Into<String>, holds: bool) -> Result<Finding, Failure> {
    Ok(Finding { lines, claim: claim.into(), holds })
}

fn device(classroom: &mut Classroom) -> Result<Finding, Failure> {
    let report = &classroom.loaded.report;
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let lines = vec![
        format!("backend: {}", report.backend.name()),
        format!("weights: {}", report.weights_form()),
        format!("processor cores: {cores}"),
    ];
    let one = classroom.ask(TEXTS[0], 1)?;
    let run = classroom.serve(&[one], Admission::All)?;
    finding(lines, "The device computes: one token came back.", run.tokens() == 1)
}

fn memory(classroom: &mut Classroom) -> Result<Finding, Failure> {
    let report = &classroom.loaded.report;
    let block_size = classroom.loaded.engine.config().block_size;
    let tokens = u64::from(report.num_blocks) * u64::from(block_size);
    let lines = vec![
        format!("{}: loaded in {:.2} s", report.plan.model, report.duration.as_secs_f64()),
        format!("weights: {}", size(report.plan.weight_bytes)),
        format!("keys and values: {} a token", size(report.plan.kv_bytes_per_token)),
        format!(
            "pool: {} blocks of {block_size} tokens, {}",
            report.num_blocks,
            size(tokens * report.plan.kv_bytes_per_token)
        ),
        format!(
            "requests of full length ({} tokens) that fit: {}",
            report.max_model_len,
            tokens / report.max_model_len as u64
        ),
    ];
    finding(lines, "The pool holds at least one request of full length.", tokens >= report.max_model_len as u64)
}

/// A request that has `length` tokens when it ends.
fn growing(classroom: &Classroom, length: usize) -> Result<Ask, Failure> {
    let mut ask = classroom.ask(&" a".repeat(length), 0)?;
    ask.prompt.truncate(length.saturating_sub(4).max(1));
    ask.length = (length - ask.prompt.len()) as u32;
    Ok(ask)
}

fn paging(classroom: &mut Classroom) -> Result<Finding, Failure> {
    let block_size = classroom.loaded.engine.config().block_size as usize;
    let asks = [growing(classroom, 10)?, growing(classroom, 200)?];
    let run = classroom.serve(&asks, Admission::All)?;
    let mut lines = Vec::new();
    let mut holds = true;
    for answer in &run.answers {
        let tokens = answer.prompt_tokens + answer.tokens.len();
        lines.push(format!("{tokens} tokens took {} blocks ({} slots)", answer.blocks, answer.blocks * block_size));
        holds &= answer.blocks == tokens.div_ceil(block_size);
    }
    lines.extend(run.fullest.iter().flat_map(draw));
    let after = classroom.loaded.engine.stats().blocks_used;
    lines.push(format!("blocks in use afterwards: {after}"));

    let (whole, paged) = (comparison::contiguous(), comparison::occupy(block_size as u32));
    lines.push(format!(
        "the same twelve requests in memory for {} tokens, by the same scheduler, counted without the model:",
        comparison::slots()
    ));
    for (name, found) in [("contiguous", whole), ("paged", paged)] {
        lines.push(format!(
            "  {name:<10} {:>2} at once, {:>3} steps, {:>4} of {:>4} taken slots unused",
            found.running_max, found.steps, found.slots_wasted, found.slots_taken
        ));
    }
    holds &= after == 0 && paged.running_max > whole.running_max;
    let (short, long) = (10_usize.div_ceil(block_size), 200_usize.div_ceil(block_size));
    finding(lines, format!("10 tokens need {short} and 200 tokens {long} blocks; paging serves more at once."), holds)
}

/// The pool and the tables when they were fullest.
fn draw(snapshot: &EngineSnapshot) -> Vec<String> {
    let mut lines = vec![
        "at the fullest (. free, c cached, # shared, letters own):".to_owned(),
        format!("  {}", drawing::pool(snapshot)),
    ];
    lines.extend(drawing::tables(snapshot).into_iter().map(|line| format!("  {line}")));
    lines
}

fn sampling(classroom: &mut Classroom) -> Result<Finding, Failure> {
    let text = TEXTS[4];
    let mut asks = Vec::new();
    for (temperature, seed) in [(0.0, 1), (0.0, 2), (0.7, 1), (1.5, 1)] {
        asks.push(Ask { temperature, seed, ..classroom.ask(text, 16)? });
    }
    let run = classroom.serve(&asks, Admission::All)?;
    let line = |(ask, answer): (&Ask, &super::classroom::Measured)| {
        format!("temperature {:.1}, seed {}: {text}{}", ask.temperature, ask.seed, answer.text.replace('\n', " "))
    };
    let lines = asks.iter().zip(&run.answers).map(line).collect();
    let [first, again, _, free] = &run.answers[..] else { unreachable!("four were asked") };
    let holds = first.tokens == again.tokens && free.tokens != first.tokens;
    finding(lines, "Temperature 0 gives the same text whatever the seed; 1.5 does not give that text.", holds)
}

/// The texts, each with a beginning of its own, so that the prefix cache plays no part.
fn texts(classroom: &Classroom, run: &str, length: u32) -> Result<Vec<Ask>, Failure> {
    TEXTS.iter().enumerate().map(|(index, text)| classroom.ask(&format!("{run}{index}. {text}"), length)).collect()
}

fn batching(classroom: &mut Classroom) -> Result<Finding, Failure> {
    let alone = texts(classroom, "alone ", 24)?;
    let alone = classroom.serve(&alone, Admission::Continuous(1))?;
    let together = texts(classroom, "together ", 24)?;
    let together = classroom.serve(&together, Admission::All)?;
    let line = |name: &str, run: &super::classroom::Run| {
        format!("{name}: {:.2} s, {:.1} tokens/s, {} steps", run.seconds, run.rate(), run.steps)
    };
    let gain = alone.seconds / together.seconds;
    let mut lines = vec![line("five, one after the other", &alone), line("five at once", &together)];
    lines.push(format!("{gain:.2} times as fast"));
    finding(lines, "Five at once are served faster than five in turn.", gain > 1.0)
}

fn continuous(classroom: &mut Classroom) -> Result<Finding, Failure> {
    let lengths = [4, 40, 8, 6, 32, 8];
    let asks = |classroom: &Classroom, run: &str| -> Result<Vec<Ask>, Failure> {
        let texts = TEXTS.iter().cycle().zip(lengths).enumerate();
        texts.map(|(index, (text, length))| classroom.ask(&format!("{run} {index}. {text}"), length)).collect()
    };
    let fixed = asks(classroom, "static")?;
    let fixed = classroom.serve(&fixed, Admission::Static(3))?;
    let fluid = asks(classroom, "continuous")?;
    let fluid = classroom.serve(&fluid, Admission::Continuous(3))?;
    let lines = vec![
        "six answers of 4, 40, 8, 6, 32 and 8 tokens, three at a time".to_owned(),
        format!("static batches:      {} steps, {:.2} s", fixed.steps, fixed.seconds),
        format!("continuous batching: {} steps, {:.2} s", fluid.steps, fluid.seconds),
    ];
    finding(lines, "Continuous batching needs fewer steps than static batches.", fluid.steps < fixed.steps)
}

fn analysis(classroom: &mut Classroom) -> Result<Finding, Failure> {
    let beginning = "You are a careful assistant who answers in one short sentence and never guesses anything. ";
    let mut lines = Vec::new();
    let mut cached = 0;
    for question in ["Who wrote Hamlet?", "What is two plus two?"] {
        let ask = classroom.ask(&format!("{beginning}{question}"), 12)?;
        let run = classroom.serve(&[ask], Admission::All)?;
        let answer = &run.answers[0];
        cached = answer.cached_tokens;
        lines.push(format!(
            "{} prompt tokens, {cached} of them cached, first token after {:.0} ms: {question}{}",
            answer.prompt_tokens,
            1e3 * answer.first,
            answer.text.replace('\n', " ")
        ));
    }
    finding(lines, "The second request finds the common beginning in the prefix cache.", cached > 0)
}

fn streaming(classroom: &mut Classroom) -> Result<Finding, Failure> {
    let ask = classroom.ask(TEXTS[0], 24)?;
    let run = classroom.serve(&[ask], Admission::All)?;
    let answer = &run.answers[0];
    let lines = vec![
        format!("{}{}", TEXTS[0], answer.text.replace('\n', " ")),
        format!("first token after {:.0} ms, the last after {:.0} ms", 1e3 * answer.first, 1e3 * answer.total),
    ];
    finding(
        lines,
        "The first token comes in less than half the time of the whole answer.",
        answer.first < 0.5 * answer.total,
    )
}

fn benchmark(classroom: &mut Classroom) -> Result<Finding, Failure> {
    let asks: Result<Vec<Ask>, Failure> =
        (0..16).map(|index| classroom.ask(&format!("{index}: {}", TEXTS[index % TEXTS.len()]), 16)).collect();
    let asks = asks?;
    let run = classroom.serve(&asks, Admission::All)?;
    let latencies = Sample::new(run.answers.iter().map(|answer| answer.total));
    let ms = |seconds: f64| format!("{:.0}", 1e3 * seconds);
    let lines = vec![
        format!("num_requests {}, duration_seconds {:.2}", asks.len(), run.seconds),
        format!("requests_per_second {:.2}, tokens_per_second {:.1}", asks.len() as f64 / run.seconds, run.rate()),
        format!(
            "latency in ms: mean {}, median {}, p95 {}, p99 {}, min {}, max {}",
            ms(latencies.mean()),
            ms(latencies.percentile(50.0)),
            ms(latencies.percentile(95.0)),
            ms(latencies.percentile(99.0)),
            ms(latencies.min()),
            ms(latencies.max())
        ),
    ];
    finding(lines, "Every request gets all its tokens.", run.answers.iter().all(|answer| answer.tokens.len() == 16))
}

fn summary(classroom: &mut Classroom) -> Result<Finding, Failure> {
    let engine = &classroom.loaded.engine;
    engine.audit();
    let stats = engine.stats();
    let lines = vec![
        format!("{} steps, {} tokens made", stats.steps, stats.generated_tokens),
        format!(
            "{} of {} prompt tokens came from the prefix cache",
            stats.prefix_cache_hits, stats.prefix_cache_queries
        ),
        format!("{} preemptions", stats.preemptions),
        format!(
            "blocks: {} in use, {} kept by the prefix cache, {} in all",
            stats.blocks_used, stats.blocks_cached, stats.blocks_total
        ),
    ];
    finding(lines, "Nothing runs, so that no block is owned.", stats.running == 0 && stats.blocks_used == 0)
}

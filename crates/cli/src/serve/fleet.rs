//! The models of a server: loaded one after the other at the start, and where an operator wants it one more.
//!
//! They share the device: what the weights of all leave of `--gpu-memory-utilization` is divided into `--max-models` equal
//! KV caches. A model that is loaded later takes its weights and its cache out of what the caches to come would have had.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::Duration;

use firebrick::{Options, SourceOptions};
use firebrick_server::{Model, ModelOrder};

use super::model::{Facts, Plan};
use crate::args::{ServeArgs, ServedArgs};
use crate::failure::Failure;
use crate::loading;
use crate::progress::Bars;

/// Everything that it takes to load a model.
pub struct Fleet {
    names: Vec<String>,
    max_models: usize,
    source: SourceOptions,
    options: Options,
    served: ServedArgs,
    record: Option<PathBuf>,
    gathering: Duration,
    bars: Bars,
    /// The device's, as measured for the first model: what the others take is counted, not measured.
    memory_bytes: OnceLock<u64>,
}

/// What there is on the device beside a model.
struct Others {
    bytes: u64,
    number: usize,
}

impl Fleet {
    /// From the command line, which is checked.
    pub fn new(args: &ServeArgs, options: Options, bars: &Bars) -> Result<Self, Failure> {
        let names = args.model.models();
        let max_models = args.max_models.unwrap_or(names.len());
        check(args, &names, max_models)?;
        Ok(Self {
            names,
            max_models,
            source: args.model.source_options(),
            options,
            served: args.served.clone(),
            record: args.record.clone(),
            gathering: Duration::from_millis(args.stream_gather_ms),
            bars: bars.clone(),
            memory_bytes: OnceLock::new(),
        })
    }

    /// The models of the command line.
    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// Loads the models of the command line, and hands over each as soon as it is there.
    pub fn load_all(&self, put: impl Fn(Model, &Facts) -> Result<(), Failure>) -> Result<(), Failure> {
        let paths: Vec<PathBuf> = self.names.iter().map(|name| self.find(name)).collect::<Result<_, _>>()?;
        let mut to_come = Vec::new();
        if self.names.len() > 1 {
            to_come = paths.iter().map(|path| firebrick::fixed_bytes(path, &self.options)).collect::<Result<_, _>>()?;
        }
        let mut taken = 0;
        for (index, (name, path)) in self.names.iter().zip(&paths).enumerate() {
            let later: u64 = to_come.iter().skip(index + 1).sum();
            let others = Others { bytes: taken + later, number: index };
            let served_names = match &self.served.served_model_name[..] {
                [] => vec![name.clone()],
                names if self.names.len() == 1 => names.to_vec(),
                names => vec![names[index].clone()],
            };
            let (model, facts) = self.load(name, path, served_names, others)?;
            taken += model.device.memory_reserved_bytes;
            put(model, &facts)?;
        }
        Ok(())
    }

    /// Loads one more model.
    pub fn load_another(&self, order: ModelOrder) -> Result<(Model, Facts), Failure> {
        if order.num_models >= self.max_models {
            let max = self.max_models;
            let advice = "unload another one first, or start with a larger --max-models";
            return Err(Failure::Run(format!("there are {max} models, as many as --max-models allows; {advice}")));
        }
        let path = self.find(&order.model)?;
        let served_names = if order.served_names.is_empty() { vec![order.model.clone()] } else { order.served_names };
        let others = Others { bytes: order.allocated_bytes, number: order.num_models };
        self.load(&order.model, &path, served_names, others)
    }

    fn find(&self, name: &str) -> Result<PathBuf, Failure> {
        Ok(loading::find(name, &self.source, &self.bars)?.path)
    }

    fn load(
        &self,
        name: &str,
        path: &Path,
        served_names: Vec<String>,
        others: Others,
    ) -> Result<(Model, Facts), Failure> {
        let options = Options {
            memory_bytes: self.memory_bytes.get().copied(),
            others_bytes: others.bytes,
            num_kv_caches: u32::try_from(self.max_models).unwrap_or(u32::MAX),
            num_kv_caches_made: u32::try_from(others.number).unwrap_or(u32::MAX),
            ..self.options.clone()
        };
        let served = ServedArgs { served_model_name: served_names, ..self.served.clone() };
        let plan = Plan::new(name.to_owned(), options, &served).recorded(self.record.clone()).gathering(self.gathering);
        let (model, facts) = plan.load(path, &self.bars)?;
        self.memory_bytes.get_or_init(|| facts.device_memory_bytes());
        Ok((model, facts))
    }
}

/// What cannot be meant with several models is refused.
fn check(args: &ServeArgs, names: &[String], max_models: usize) -> Result<(), Failure> {
    let refuse = |text: String| Err(Failure::Usage(text));
    if names.is_empty() {
        let example = "name one as in `firebrick serve HuggingFaceTB/SmolLM2-135M-Instruct`, or set MODEL_NAME";
        return refuse(format!("no model given; {example}"));
    }
    if max_models < names.len() {
        return refuse(format!("--max-models is {max_models}, but {} models are given", names.len()));
    }
    let served = &args.served.served_model_name;
    if names.len() > 1 && !served.is_empty() && served.len() != names.len() {
        let (served, models) = (served.len(), names.len());
        return refuse(format!(
            "--served-model-name has {served} names for {models} models; give one for each, in order"
        ));
    }
    let shown = if served.is_empty() { names } else { served };
    if let Some(twice) = shown.iter().enumerate().find(|(index, name)| shown[..*index].contains(name)) {
        return refuse(format!("the name {} is given twice; --served-model-name gives each model its own", twice.1));
    }
    if max_models == 1 {
        return Ok(());
    }
    let single = [
        ("--tokenizer", args.device.tokenizer.is_some()),
        ("--chat-template", args.device.chat_template.is_some()),
        ("--record", args.record.is_some()),
        ("--revision", args.model.revision().is_some()),
    ];
    match single.iter().find(|(_, is_given)| *is_given) {
        Some((flag, _)) => {
            refuse(format!("{flag} is about one model; it cannot be given with several, or --max-models"))
        }
        None => Ok(()),
    }
}

//! The models of a server: which there are, which one a name means, and how one leaves.
//!
//! A model in use is held by the requests that use it, so that one that leaves is gone when the last of them has ended.

use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::{Duration, Instant};

use crate::error::{ApiError, ErrorKind};
use crate::grammars::prepare_behind;
use crate::metrics::HttpMetrics;
use crate::state::{Model, ModelSlot};

/// How often a model that leaves is looked at.
const LEAVING_POLL: Duration = Duration::from_millis(10);

/// Time for requests to be told that their model leaves, and for its engine to end.
const ENDING_TIME: Duration = Duration::from_secs(5);

/// The served models, in the order in which they came. The first is the one of requests that name none.
pub(crate) struct ServedModels(RwLock<Table>);

#[derive(Default)]
struct Table {
    served: Vec<Served>,
    /// All models of the command line have been loaded.
    has_started: bool,
    failed: Option<String>,
}

struct Served {
    model: Arc<Model>,
    http: Arc<HttpMetrics>,
    is_leaving: bool,
}

impl Table {
    fn find(&self, name: &str) -> Option<&Served> {
        self.served.iter().find(|served| served.model.is_called(name))
    }

    fn check_free(&self, names: &[String]) -> Result<(), ApiError> {
        let Some(name) = names.iter().find(|name| self.find(name).is_some()) else { return Ok(()) };
        let message = format!("a model is served as `{}` already", name.escape_debug());
        Err(ApiError::parameter("served_model_name", message))
    }
}

impl ServedModels {
    /// None yet.
    pub fn new() -> Self {
        Self(RwLock::default())
    }

    /// Refuses names that a model has already.
    pub fn check_free(&self, names: &[String]) -> Result<(), ApiError> {
        self.read().check_free(names)
    }

    /// Puts a model into service; fails when one of its names is taken.
    pub fn add(&self, model: Model) -> Result<Arc<Model>, ApiError> {
        let mut table = self.write();
        table.check_free(&model.served_names)?;
        let model = Arc::new(model);
        prepare_behind(&model);
        table.served.push(Served { model: model.clone(), http: Arc::default(), is_leaving: false });
        Ok(model)
    }

    /// Says that all models of the command line are there.
    pub fn start(&self) {
        self.write().has_started = true;
    }

    /// Says that a model of the command line cannot be loaded.
    pub fn fail(&self, reason: String) {
        self.write().failed = Some(reason);
    }

    /// How far the server is.
    pub fn slot(&self) -> ModelSlot {
        let table = self.read();
        match (&table.failed, table.served.first()) {
            (Some(reason), _) => ModelSlot::Failed(reason.clone()),
            (None, Some(first)) if table.has_started => ModelSlot::Ready(first.model.clone()),
            _ => ModelSlot::Loading,
        }
    }

    /// Those that are loaded.
    pub fn all(&self) -> Vec<Arc<Model>> {
        self.read().served.iter().map(|served| served.model.clone()).collect()
    }

    /// Those that are loaded and not about to leave.
    pub fn staying(&self) -> Vec<Arc<Model>> {
        let table = self.read();
        table.served.iter().filter(|served| !served.is_leaving).map(|served| served.model.clone()).collect()
    }

    /// The models with their counters of requests.
    pub fn with_metrics(&self) -> Vec<(Arc<Model>, Arc<HttpMetrics>)> {
        self.read().served.iter().map(|served| (served.model.clone(), served.http.clone())).collect()
    }

    /// The counters of a model, or of the first one for requests that reached none.
    pub fn http_metrics(&self, model: Option<&Model>) -> Option<Arc<HttpMetrics>> {
        let table = self.read();
        let found = table.served.iter().find(|served| model.is_some_and(|model| std::ptr::eq(&*served.model, model)));
        found.or(table.served.first()).map(|served| served.http.clone())
    }

    /// The model under a name, or the first.
    pub fn named(&self, name: Option<&str>) -> Result<Arc<Model>, ApiError> {
        let table = self.read();
        let found = match name {
            None => table.served.iter().find(|served| !served.is_leaving),
            Some(name) => table.find(name),
        };
        match (found, name) {
            (Some(served), _) if served.is_leaving => {
                let message = format!("The model `{}` is being unloaded.", served.model.name().escape_debug());
                Err(ApiError { kind: ErrorKind::Unavailable, message, param: Some("model".to_owned()) })
            }
            (Some(served), _) => Ok(served.model.clone()),
            (None, _) if table.failed.is_some() => Err(unavailable("the model could not be loaded")),
            (None, _) if !table.has_started => Err(unavailable("the model is still loading")),
            (None, Some(name)) => Err(unknown(name)),
            (None, None) => Err(unavailable("no model is loaded")),
        }
    }

    /// Takes a model out of service: no new requests from now on; those that it has get `patience`, then a final error.
    /// Returns whether all of them finished.
    pub async fn remove(&self, name: &str, patience: Duration) -> Result<bool, ApiError> {
        let model = self.begin_leaving(name)?;
        let finished = wait_unused(&model, patience).await;
        if !finished {
            model.engine.stop_because("the model is being unloaded");
            wait_unused(&model, ENDING_TIME).await;
        }
        model.engine.stop();
        // A hanging step keeps the engine's memory; its model is out of service all the same.
        let _ = tokio::time::timeout(ENDING_TIME, model.engine.ended()).await;
        self.write().served.retain(|served| !Arc::ptr_eq(&served.model, &model));
        Ok(finished)
    }

    fn begin_leaving(&self, name: &str) -> Result<Arc<Model>, ApiError> {
        let mut table = self.write();
        let stay = table.served.iter().filter(|served| !served.is_leaving && !served.model.is_called(name)).count();
        let Some(served) = table.served.iter_mut().find(|served| served.model.is_called(name)) else {
            return Err(unknown(name));
        };
        if stay == 0 {
            let message = "the only model of a server cannot be unloaded; load another one first, or end the server";
            return Err(ApiError::parameter("model", message));
        }
        served.is_leaving = true;
        Ok(served.model.clone())
    }

    fn read(&self) -> RwLockReadGuard<'_, Table> {
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Table> {
        self.0.write().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Waits until only the table and the caller hold the model.
async fn wait_unused(model: &Arc<Model>, patience: Duration) -> bool {
    let deadline = Instant::now() + patience;
    while Arc::strong_count(model) > 2 {
        if Instant::now() >= deadline {
            return false;
        }
        tokio::time::sleep(LEAVING_POLL).await;
    }
    true
}

fn unavailable(message: &str) -> ApiError {
    ApiError::new(ErrorKind::Unavailable, message)
}

fn unknown(name: &str) -> ApiError {
    let shown: String = name.chars().take(200).collect();
    let message = format!("The model `{}` does not exist.", shown.escape_debug());
    ApiError { kind: ErrorKind::NotFound, message, param: Some("model".to_owned()) }
}

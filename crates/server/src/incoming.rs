//! A request for a model as it comes in: what the handlers of all front doors take, and how they go on.

use axum::body::{Body, Bytes};
use axum::extract::{FromRequest, Request};
use axum::http::HeaderMap;
use axum::response::Response;
use serde::de::DeserializeOwned;

use crate::answer::Format;
use crate::auth::Caller;
use crate::body::{read_bytes, read_json};
use crate::error::{ApiError, ErrorKind};
use crate::serve_request::{Answered, collect_request, compute_request, serve_request};
use crate::state::AppState;
use crate::telemetry::RequestContext;
use crate::validate::Draft;

/// A request whose body has not been read.
pub struct Incoming {
    state: AppState,
    context: RequestContext,
    caller: Caller,
    headers: HeaderMap,
    body: Body,
}

impl FromRequest<AppState> for Incoming {
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &AppState) -> Result<Self, ApiError> {
        let (parts, body) = request.into_parts();
        let context = parts.extensions.get::<RequestContext>().cloned();
        let caller = parts.extensions.get::<Caller>().copied();
        // Routes without these layers have other handlers.
        let (Some(context), Some(caller)) = (context, caller) else {
            return Err(ApiError::new(ErrorKind::Internal, "internal error"));
        };
        Ok(Self { state: state.clone(), context, caller, headers: parts.headers, body })
    }
}

impl Incoming {
    /// The body, and the request with it, for those who must see a body to know whom it is for.
    pub async fn read_ahead(self) -> Result<(Bytes, Self), ApiError> {
        let bytes = read_bytes(&self.headers, self.body, &self.state.config().limits).await?;
        Ok((bytes.clone(), Self { body: Body::from(bytes), ..self }))
    }

    /// Answers what `draft` makes of the body, in the format that it says.
    pub async fn serve<B: DeserializeOwned>(
        self,
        kind: &'static str,
        draft: impl FnOnce(&AppState, Caller, B) -> Result<(Format, Draft), ApiError>,
    ) -> Result<Response, ApiError> {
        let Self { state, context, caller, headers, body } = self;
        let read = async { draft(&state, caller, read_json(&headers, body, &state.config().limits).await?) };
        serve_request(&state, context, kind, read).await
    }

    /// The whole answer to what `draft` makes of the body, and what else it reads there, for endpoints with a format of
    /// their own.
    pub async fn collect<B: DeserializeOwned, F>(
        self,
        kind: &'static str,
        draft: impl FnOnce(Caller, B) -> Result<(F, Draft), ApiError>,
    ) -> Result<(F, Answered), ApiError> {
        let Self { state, context, caller, headers, body } = self;
        let read = async { draft(caller, read_json(&headers, body, &state.config().limits).await?) };
        collect_request(&state, context, kind, read).await
    }

    /// What `work` makes of the body with templates and tokenizers, without the engine; it runs where it may compute.
    pub async fn compute<B: DeserializeOwned + Send + 'static, T: Send + 'static>(
        self,
        work: impl FnOnce(&AppState, B) -> Result<T, ApiError> + Send + 'static,
    ) -> Result<T, ApiError> {
        let Self { state, context, caller, headers, body } = self;
        let read = read_json(&headers, body, &state.config().limits);
        compute_request(&state, context.arrived, caller, read, work).await
    }
}

//! What a client is told when something can't be done.

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

/// A refusal, as OpenAI's clients read it: `{"error": {message, type, param, code}}`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ApiError {
    pub status: StatusCode,
    pub message: String,
    pub kind: &'static str,
    /// The request's field.
    pub param: Option<String>,
    pub code: Option<&'static str>,
    /// Seconds after which another try may do better.
    pub retry_after: Option<u32>,
}

pub(crate) type ApiResult<T> = Result<T, ApiError>;

impl ApiError {
    fn new(status: StatusCode, kind: &'static str, message: impl Into<String>) -> ApiError {
        ApiError { status, message: message.into(), kind, param: None, code: None, retry_after: None }
    }

    /// The request isn't one that can be read or served.
    pub fn invalid(message: impl Into<String>) -> ApiError {
        ApiError::new(StatusCode::BAD_REQUEST, "invalid_request_error", message)
    }

    /// A field has a value that can't be used.
    pub fn field(name: &str, expected: impl AsRef<str>, found: impl AsRef<str>) -> ApiError {
        let message = format!("{name}: expected {}, found {}", expected.as_ref(), found.as_ref());
        ApiError { param: Some(name.into()), ..ApiError::invalid(message) }
    }

    /// A field asks for what this server doesn't do.
    pub fn unsupported(name: &str, expected: &str) -> ApiError {
        let message = format!("{name}: expected {expected}; nothing else is supported here");
        ApiError {
            param: Some(name.into()),
            code: Some("unsupported_parameter"),
            ..ApiError::invalid(message)
        }
    }

    /// As [`ApiError::invalid`], with another status.
    pub fn refused(status: StatusCode, message: impl Into<String>) -> ApiError {
        ApiError { status, ..ApiError::invalid(message) }
    }

    pub fn with_code(self, code: &'static str) -> ApiError {
        ApiError { code: Some(code), ..self }
    }

    pub fn unauthorized() -> ApiError {
        let message = "Authorization: expected 'Bearer' and this server's key, found none or another";
        ApiError::new(StatusCode::UNAUTHORIZED, "authentication_error", message).with_code("invalid_api_key")
    }

    pub fn queue_full(places: usize) -> ApiError {
        let message = format!("queue: expected a free place among {places}, found none; try again later");
        ApiError {
            code: Some("queue_full"),
            retry_after: Some(1),
            ..ApiError::new(StatusCode::TOO_MANY_REQUESTS, "rate_limit_error", message)
        }
    }

    pub fn unavailable(message: &str) -> ApiError {
        ApiError {
            retry_after: Some(5),
            ..ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "server_error", message)
        }
    }

    pub fn timed_out(seconds: u64) -> ApiError {
        let message = format!("the request took longer than the {seconds} seconds that one may take");
        ApiError::new(StatusCode::GATEWAY_TIMEOUT, "server_error", message).with_code("timeout")
    }

    pub fn internal(message: impl Into<String>) -> ApiError {
        ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, "server_error", message)
    }

    pub fn to_json(&self) -> Value {
        let (message, kind, param, code) = (&self.message, self.kind, &self.param, self.code);
        json!({ "error": { "message": message, "type": kind, "param": param, "code": code } })
    }
}

impl From<tilewright::Error> for ApiError {
    fn from(error: tilewright::Error) -> ApiError {
        match error {
            tilewright::Error::Request { what, expected, found } => {
                // The engine's names of what the API calls otherwise.
                let name = match what {
                    "answers" => "n",
                    "prompt and max_tokens" => "max_tokens",
                    "text" => "prompt",
                    other => other,
                };
                ApiError::field(name, expected, found)
            }
            tilewright::Error::Stopped => ApiError::unavailable("the engine has stopped"),
            other => {
                tracing::error!(error = %other, "the engine failed");
                ApiError::internal(other.to_string())
            }
        }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = json_response(self.status, &self.to_json());
        if let Some(seconds) = self.retry_after {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        if self.status == StatusCode::UNAUTHORIZED {
            response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}

/// A response of JSON.
pub(crate) fn json_response(status: StatusCode, value: &Value) -> Response {
    (status, [(header::CONTENT_TYPE, "application/json")], value.to_string()).into_response()
}

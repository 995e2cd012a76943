use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use crate::ConvertError;

/// Typed access to a JSON object whose errors name the field.
pub(crate) struct Fields<'a> {
    path: PathBuf,
    /// Put before a field's name: `rope_parameters.` inside that object.
    prefix: String,
    object: &'a Map<String, Value>,
}

impl<'a> Fields<'a> {
    pub(crate) fn new(path: &Path, object: &'a Map<String, Value>) -> Self {
        Self { path: path.into(), prefix: String::new(), object }
    }

    /// The value of a field; `None` where it is absent or null.
    pub(crate) fn get<T: DeserializeOwned>(&self, field: &str) -> Result<Option<T>, ConvertError> {
        match self.object.get(field) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => {
                T::deserialize(value).map(Some).map_err(|error| self.wrong(field, &error.to_string()))
            }
        }
    }

    pub(crate) fn require<T: DeserializeOwned>(&self, field: &str) -> Result<T, ConvertError> {
        self.get(field)?.ok_or_else(|| self.wrong(field, "is missing"))
    }

    /// The fields of an object inside this one.
    pub(crate) fn inside(&self, field: &str) -> Result<Option<Fields<'a>>, ConvertError> {
        match self.object.get(field) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::Object(object)) => Ok(Some(Fields {
                path: self.path.clone(),
                prefix: format!("{}{field}.", self.prefix),
                object,
            })),
            Some(_) => Err(self.wrong(field, "is no object")),
        }
    }

    /// Whether the field is written, be it as null.
    pub(crate) fn has(&self, field: &str) -> bool {
        self.object.contains_key(field)
    }

    pub(crate) fn wrong(&self, field: &str, reason: &str) -> ConvertError {
        ConvertError::Json {
            path: self.path.clone(),
            reason: format!("field `{}{field}`: {reason}", self.prefix),
        }
    }
}

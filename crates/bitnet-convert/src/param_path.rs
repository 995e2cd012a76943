//! Where a visitor of a module stands.

/// The path of the parameter that a visitor stands at.
#[derive(Debug, Default)]
pub(crate) struct ParamPath {
    fields: Vec<String>,
    containers: Vec<String>,
}

impl ParamPath {
    pub(crate) fn enter(&mut self, field: &str, container: &str) {
        self.fields.push(field.into());
        self.containers.push(container.into());
    }

    pub(crate) fn exit(&mut self) {
        self.fields.pop();
        self.containers.pop();
    }

    /// The fields from the root, without those of a slot's form: `layers`, `0`, `attention`, `query`, `weight`; and without
    /// the kind of its outliers.
    pub(crate) fn fields(&self) -> Vec<&str> {
        let is_variant = |i: usize| i > 0 && matches!(self.fields[i - 1].as_str(), "form" | "outliers");
        let kept = (0..self.fields.len()).filter(|&i| self.fields[i] != "form" && !is_variant(i));
        kept.map(|i| self.fields[i].as_str()).collect()
    }

    /// Those fields, joined by dots.
    pub(crate) fn path(&self) -> String {
        self.fields().join(".")
    }

    /// The type that holds the parameter, in Burn's words: `Struct:RmsNorm`.
    pub(crate) fn container(&self) -> &str {
        self.containers.last().map_or("", String::as_str)
    }

    /// Whether this is the weight of Burn's linear layer, stored transposed.
    pub(crate) fn is_transposed(&self) -> bool {
        self.container() == "Struct:Linear" && self.fields.last().is_some_and(|field| field == "weight")
    }

    /// The shape that a checkpoint stores a parameter in.
    pub(crate) fn stored_shape(&self, shape: &[usize]) -> Vec<usize> {
        if self.is_transposed() { shape.iter().rev().copied().collect() } else { shape.to_vec() }
    }
}

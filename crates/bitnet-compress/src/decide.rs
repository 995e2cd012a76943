//! Which tensors are linear weights: by type, rank, name, shape and policy, in this order, each with its reason.

use std::collections::{BTreeMap, BTreeSet};

use bitnet_cpu::MAX_D_INPUT;
use globset::{Glob, GlobMatcher};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::floats::Float;
use crate::names::{self, Kind};
use crate::source::{Source, Tensor};
use crate::{CompressError, Options};

/// What is done to a tensor, and why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "decision", content = "because")]
pub enum Decision {
    /// It becomes ternary.
    Ternarized(TernarizedBecause),
    /// It stays as it is, up to the type of its floats.
    Left(LeftBecause),
}

/// Why a tensor becomes ternary.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TernarizedBecause {
    /// Its name is that of a linear map.
    Name,
    /// It is a matrix in a numbered block, and neither its name nor its shape is that of anything else.
    MatrixInBlock,
    /// This glob includes it.
    Included(String),
    /// It is the weight of a projection of a model that is known.
    Projection,
}

/// Why a tensor stays as it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LeftBecause {
    /// It is of this type, not f32, f16 or bf16.
    Type(String),
    /// This glob excludes it.
    Excluded(String),
    /// It has this many axes: no matrix and no stack of experts' matrices.
    Axes(usize),
    /// One of its matrix axes is 1 or 0: a vector.
    Vector,
    /// Its rows are longer than any kernel takes.
    TooWide,
    /// By name, a bias.
    Bias,
    /// By name, the gain of a norm.
    Norm,
    /// By name, an embedding.
    Embedding,
    /// By name, a table of positions.
    Position,
    /// By name, what chooses between experts.
    Router,
    /// By shape, what chooses between experts: one row per expert.
    RouterShape,
    /// By name, an output head.
    Head,
    /// By shape, an embedding or a head: one row per token, position or class.
    TableShape,
    /// By name, a convolution.
    Convolution,
    /// By name, a factor of an adapter.
    LowRank,
    /// Its name is not known and stands in no numbered block.
    OutsideBlocks,
    /// Its name is not known and does not end in `.weight`.
    NoWeight,
    /// It belongs to no projection of a model that is known.
    NoProjection,
}

/// A weight's matrices, as they stand in the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Matrices {
    /// How many stand behind one another: the experts of a stack, else 1.
    pub count: usize,
    /// Rows of each weight.
    pub d_output: usize,
    /// Columns of each weight.
    pub d_input: usize,
    /// Whether the file has them as `[d_input, d_output]`, as GPT-2's `Conv1D`.
    pub transposed: bool,
}

impl Matrices {
    /// How many weights there are.
    pub fn len(&self) -> usize {
        self.count * self.d_output * self.d_input
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// `model_type`s whose Conv1D weights are stored as `[d_input, d_output]`.
const CONV1D: [&str; 4] = ["gpt2", "openai-gpt", "imagegpt", "decision_transformer"];
/// The modules that are Conv1D there.
const CONV1D_MODULES: [&str; 4] = ["c_attn", "c_proj", "c_fc", "q_attn"];
/// `model_type`s whose stacks of experts are `[experts, d_input, d_output]`.
const TRANSPOSED_EXPERTS: [&str; 5] =
    ["gpt_oss", "llama4", "llama4_text", "qwen3_vl_moe", "qwen3_vl_moe_text"];

/// Decides for every tensor, in their order.
///
/// # Errors
/// [`CompressError::Glob`], [`CompressError::GlobMatchesNothing`], [`CompressError::Contradiction`],
/// [`CompressError::Group`].
pub(crate) fn decide(source: &Source, options: &Options) -> Result<Vec<(Decision, Matrices)>, CompressError> {
    let (include, exclude) = (globs(&options.include)?, globs(&options.exclude)?);
    let facts = Facts::of(source);
    let mut used = BTreeSet::new();
    let mut decisions = Vec::with_capacity(source.tensors.len());
    for tensor in &source.tensors {
        let matrices = facts.matrices(tensor);
        let excluded =
            exclude.iter().filter(|glob| glob.is_match(&tensor.name)).map(text).collect::<Vec<_>>();
        used.extend(excluded.iter().cloned());
        let mut decision = match (structure(tensor, &matrices), excluded.into_iter().next()) {
            (Some(left), None) => Decision::Left(left),
            (structure, excluded) => {
                let mut included = include.iter().filter(|glob| glob.is_match(&tensor.name)).map(text);
                let is_matrix = structure.is_none();
                let included = included.by_ref().filter(|_| is_matrix).collect::<Vec<_>>();
                used.extend(included.iter().cloned());
                match (excluded, included.into_iter().next()) {
                    (Some(exclude), Some(include)) => {
                        return Err(CompressError::Contradiction {
                            name: tensor.name.clone(),
                            exclude,
                            include,
                        });
                    }
                    (Some(exclude), None) => Decision::Left(LeftBecause::Excluded(exclude)),
                    (None, Some(include)) => Decision::Ternarized(TernarizedBecause::Included(include)),
                    (None, None) => facts.by_name_and_shape(tensor, &matrices),
                }
            }
        };
        if tensor.shape.len() == 3
            && !names::is_expert(&tensor.name)
            && matches!(&decision, Decision::Ternarized(because) if !matches!(because, TernarizedBecause::Included(_)))
        {
            decision = Decision::Left(LeftBecause::Axes(3));
        }
        if let (Decision::Ternarized(_), bitnet_format::Granularity::Group(group)) =
            (&decision, options.rule.granularity())
            && !matrices.d_input.is_multiple_of(group)
        {
            let (name, shape, d_input) = (tensor.name.clone(), tensor.shape.clone(), matrices.d_input);
            return Err(CompressError::Group { name, shape, group, d_input });
        }
        decisions.push((decision, matrices));
    }
    let unused = |globs: &[GlobMatcher]| globs.iter().map(text).find(|glob| !used.contains(glob));
    if let Some(glob) = unused(&exclude) {
        return Err(CompressError::GlobMatchesNothing { glob, expected: "tensor" });
    }
    if let Some(glob) = unused(&include) {
        return Err(CompressError::GlobMatchesNothing { glob, expected: "matrix of floats" });
    }
    Ok(decisions)
}

fn globs(globs: &[String]) -> Result<Vec<GlobMatcher>, CompressError> {
    let compile = |glob: &String| {
        Glob::new(glob)
            .map(|glob| glob.compile_matcher())
            .map_err(|error| CompressError::Glob { glob: glob.clone(), reason: error.kind().to_string() })
    };
    globs.iter().map(compile).collect()
}

fn text(glob: &GlobMatcher) -> String {
    glob.glob().glob().to_owned()
}

/// Why a tensor can be no linear weight, whatever its name.
fn structure(tensor: &Tensor, matrices: &Matrices) -> Option<LeftBecause> {
    if Float::of(tensor.dtype).is_none() {
        return Some(LeftBecause::Type(format!("{:?}", tensor.dtype).to_lowercase()));
    }
    if !(2..=3).contains(&tensor.shape.len()) {
        return Some(match names::kind(&tensor.name) {
            Kind::Bias => LeftBecause::Bias,
            Kind::Norm => LeftBecause::Norm,
            _ => LeftBecause::Axes(tensor.shape.len()),
        });
    }
    if matrices.is_empty() || matrices.d_output == 1 || matrices.d_input == 1 {
        return Some(LeftBecause::Vector);
    }
    (matrices.d_input > MAX_D_INPUT).then_some(LeftBecause::TooWide)
}

/// What a whole checkpoint says about single tensors.
struct Facts {
    conv1d: bool,
    transposed_experts: bool,
    /// Rows of tables: tokens, positions, classes.
    tables: BTreeSet<usize>,
    /// Experts per block, and what the config says of them.
    experts: BTreeMap<String, usize>,
    experts_by_config: BTreeSet<usize>,
    /// Shapes of embeddings.
    embeddings: BTreeSet<Vec<usize>>,
}

impl Facts {
    fn of(source: &Source) -> Self {
        let mut numbers = BTreeMap::new();
        let mut model_types = Vec::new();
        if let Some(config) = &source.config {
            read_config(config, &mut numbers, &mut model_types);
        }
        let of = |keys: &[&str]| {
            keys.iter()
                .flat_map(|key| numbers.get(*key).cloned().unwrap_or_default())
                .collect::<BTreeSet<usize>>()
        };
        let is = |table: &[&str]| model_types.iter().any(|found| table.contains(&found.as_str()));
        let mut experts: BTreeMap<String, usize> = BTreeMap::new();
        let mut embeddings = BTreeSet::new();
        for tensor in &source.tensors {
            if let Some(block) = names::expert_block(&tensor.name) {
                let found = match names::expert_number(&tensor.name) {
                    Some(number) => number + 1,
                    None if tensor.shape.len() == 3 => tensor.shape[0],
                    None => 0,
                };
                let known = experts.entry(block.into()).or_default();
                *known = found.max(*known);
            }
            if tensor.shape.len() == 2 && names::kind(&tensor.name) == Kind::Embedding {
                embeddings.insert(tensor.shape.clone());
            }
        }
        Self {
            conv1d: if source.config.is_some() { is(&CONV1D) } else { looks_like_conv1d(source) },
            transposed_experts: is(&TRANSPOSED_EXPERTS),
            tables: of(&[
                "vocab_size",
                "max_position_embeddings",
                "n_positions",
                "type_vocab_size",
                "num_labels",
            ]),
            experts,
            experts_by_config: of(&[
                "num_experts",
                "num_local_experts",
                "n_routed_experts",
                "moe_num_experts",
            ]),
            embeddings,
        }
    }

    /// The matrices of a tensor with two axes or three; of any other, none.
    fn matrices(&self, tensor: &Tensor) -> Matrices {
        let module = tensor.name.strip_suffix(".weight").and_then(|name| name.rsplit('.').next());
        let (count, rows, columns, transposed) = match tensor.shape[..] {
            [rows, columns] => (
                1,
                rows,
                columns,
                self.conv1d && module.is_some_and(|module| CONV1D_MODULES.contains(&module)),
            ),
            [count, rows, columns] => (count, rows, columns, self.transposed_experts),
            _ => (0, 0, 0, false),
        };
        let (d_output, d_input) = if transposed { (columns, rows) } else { (rows, columns) };
        Matrices { count, d_output, d_input, transposed }
    }

    fn by_name_and_shape(&self, tensor: &Tensor, matrices: &Matrices) -> Decision {
        let name = &tensor.name;
        let left = match names::kind(name) {
            Kind::Linear => return Decision::Ternarized(TernarizedBecause::Name),
            Kind::Bias => LeftBecause::Bias,
            Kind::Norm => LeftBecause::Norm,
            Kind::Embedding => LeftBecause::Embedding,
            Kind::Position => LeftBecause::Position,
            Kind::Router => LeftBecause::Router,
            Kind::Head => LeftBecause::Head,
            Kind::Convolution => LeftBecause::Convolution,
            Kind::LowRank => LeftBecause::LowRank,
            Kind::Unknown if !names::is_in_block(name) => LeftBecause::OutsideBlocks,
            Kind::Unknown if !name.ends_with(".weight") && !names::is_expert(name) => LeftBecause::NoWeight,
            Kind::Unknown if self.is_router(name, matrices) => LeftBecause::RouterShape,
            Kind::Unknown if self.is_table(tensor, matrices) => LeftBecause::TableShape,
            Kind::Unknown => return Decision::Ternarized(TernarizedBecause::MatrixInBlock),
        };
        Decision::Left(left)
    }

    /// Whether a matrix beside experts has a row for each of them.
    fn is_router(&self, name: &str, matrices: &Matrices) -> bool {
        let rows = matrices.d_output;
        let beside = |(block, count): (&String, &usize)| {
            *count == rows && name.strip_prefix(block.as_str()).is_some_and(|rest| rest.starts_with('.'))
        };
        names::expert_block(name).is_none()
            && (self.experts.iter().any(beside) || self.experts_by_config.contains(&rows))
    }

    fn is_table(&self, tensor: &Tensor, matrices: &Matrices) -> bool {
        self.tables.contains(&matrices.d_output) || self.embeddings.contains(&tensor.shape)
    }
}

/// The numbers and model types of a config and of the objects in it, as `text_config`.
fn read_config(config: &Value, numbers: &mut BTreeMap<String, Vec<usize>>, model_types: &mut Vec<String>) {
    for (key, value) in config.as_object().into_iter().flatten() {
        if let Some(number) = value.as_u64() {
            numbers.entry(key.clone()).or_default().push(number as usize);
        } else if let (Some(text), "model_type") = (value.as_str(), key.as_str()) {
            model_types.push(text.into());
        } else if value.is_object() {
            read_config(value, numbers, model_types);
        }
    }
}

/// Without a config: whether some `c_attn` has as many columns as its bias has numbers, and not as many rows.
fn looks_like_conv1d(source: &Source) -> bool {
    source.tensors.iter().any(|weight| {
        let Some(slot) = weight.name.strip_suffix("c_attn.weight") else { return false };
        let bias = format!("{slot}c_attn.bias");
        let bias = source.tensors.iter().find(|tensor| tensor.name == bias);
        match (&weight.shape[..], bias.map(|bias| &bias.shape[..])) {
            ([rows, columns], Some([n])) => n == columns && n != rows,
            _ => false,
        }
    })
}

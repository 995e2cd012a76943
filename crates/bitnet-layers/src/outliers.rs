use bitnet_quant::hadamard;
use burn::module::{Module, Param};
use burn::nn::Linear;
use burn::tensor::module::linear;
use burn::tensor::{Device, Int, Tensor, TensorData};

use crate::param::successor;
use crate::{BitLinear, Form, LayerError, Projection};

/// How a slot treats inputs that are much larger than the rest, which would leave the rest few int8 codes.
#[derive(Module, Debug)]
pub enum Outliers {
    /// They are spread over all inputs.
    Hadamard(Hadamard),
    /// They, and the weight's columns that they meet, stay in full precision.
    Salient(Salient),
}

/// The map's weight is `W·H/√n`, and its input is turned by the same matrix right before it is quantized.
///
/// # Source
/// docs/numerics.md#hadamard.
#[derive(Module, Debug)]
pub struct Hadamard {
    /// Size of the slot's input features; the map's own is the next power of two.
    pub d_input: usize,
}

/// Columns of the weight that the map lacks: they are multiplied with their inputs as they are.
///
/// # Source
/// docs/numerics.md#salient-columns.
#[derive(Module, Debug)]
pub struct Salient {
    /// The columns, `[d_output, columns]`.
    pub weight: Param<Tensor<2>>,
    #[module(skip)]
    columns: Vec<usize>,
}

impl Salient {
    /// Columns of a weight of `d_input` inputs.
    ///
    /// # Errors
    /// [`LayerError::Columns`] unless there is at least one column, they ascend, and one is left for the map;
    /// [`LayerError::ColumnWeight`] where the weight has another number of columns.
    pub fn new(weight: Param<Tensor<2>>, columns: Vec<usize>, d_input: usize) -> Result<Self, LayerError> {
        check_columns(&columns, d_input)?;
        let [_, found] = weight.lazy_shape().dims();
        if found != columns.len() {
            return Err(LayerError::ColumnWeight { found, expected: columns.len() });
        }
        Ok(Self { weight, columns })
    }

    /// Which columns, ascending.
    pub fn columns(&self) -> &[usize] {
        &self.columns
    }

    /// The other columns of a matrix, and these.
    pub(crate) fn split<const D: usize>(&self, x: Tensor<D>) -> (Tensor<D>, Tensor<D>) {
        let (device, d_input) = (x.device(), x.dims()[D - 1]);
        let rest = x.clone().select(D - 1, indices(&rest_of(&self.columns, d_input), &device));
        (rest, x.select(D - 1, indices(&self.columns, &device)))
    }

    /// What [`split`](Self::split) was given.
    pub(crate) fn join(&self, rest: Tensor<2>, salient: Tensor<2>) -> Tensor<2> {
        let d_input = rest.dims()[1] + salient.dims()[1];
        let mut order = rest_of(&self.columns, d_input);
        order.extend(&self.columns);
        let mut place = vec![0; d_input];
        order.iter().enumerate().for_each(|(from, &column)| place[column] = from);
        let device = rest.device();
        Tensor::cat(vec![rest, salient], 1).select(1, indices(&place, &device))
    }
}

fn check_columns(columns: &[usize], d_input: usize) -> Result<(), LayerError> {
    let fits = !columns.is_empty()
        && columns.len() < d_input
        && columns.windows(2).all(|pair| pair[0] < pair[1])
        && columns.last().is_some_and(|last| *last < d_input);
    if fits { Ok(()) } else { Err(LayerError::Columns { found: columns.to_vec(), d_input }) }
}

fn rest_of(columns: &[usize], d_input: usize) -> Vec<usize> {
    (0..d_input).filter(|column| columns.binary_search(column).is_err()).collect()
}

/// Columns as a tensor of indices.
fn indices(columns: &[usize], device: &Device) -> Tensor<1, Int> {
    let columns: Vec<i32> = columns.iter().map(|&column| column as i32).collect();
    let n = columns.len();
    Tensor::from_data(TensorData::new(columns, [n]), device)
}

impl Projection {
    /// `map(x)` around which the outliers are treated; `map` is what quantizes.
    pub(crate) fn around<const D: usize>(
        &self,
        x: Tensor<D>,
        map: impl FnOnce(Tensor<D>) -> Tensor<D>,
    ) -> Tensor<D> {
        match &self.outliers {
            None => map(x),
            Some(Outliers::Hadamard(_)) => map(hadamard(x)),
            Some(Outliers::Salient(salient)) => {
                let (rest, exact) = salient.split(x);
                map(rest) + linear(exact, salient.weight.val().transpose(), None)
            }
        }
    }

    /// Turns the weight and, from now on, the map's input, in place. At λ = 0 the slot computes what it did. Returns whether
    /// it did so: a slot that treats outliers already stays as it is.
    ///
    /// # Errors
    /// [`LayerError::NoLatentWeight`] for a packed slot, [`LayerError::Quantization`] where the group does not fit the turned
    /// weight; the slot is unchanged.
    pub fn rotate(&mut self) -> Result<bool, LayerError> {
        if self.outliers.is_some() {
            return Ok(false);
        }
        let d_input = self.d_input();
        self.form = self.with_operand_weight(hadamard)?;
        self.outliers = Some(Outliers::Hadamard(Hadamard { d_input }));
        Ok(true)
    }

    /// Takes columns out of what is quantized, in place. At λ = 0 the slot computes what it did. Returns whether it did so: a
    /// slot that treats outliers already stays as it is.
    ///
    /// # Errors
    /// [`LayerError::Columns`] for columns that are not there, [`LayerError::NoLatentWeight`] for a packed slot,
    /// [`LayerError::Quantization`] where the group does not divide the columns that are left; the slot is unchanged.
    pub fn keep_salient(&mut self, columns: &[usize]) -> Result<bool, LayerError> {
        if self.outliers.is_some() {
            return Ok(false);
        }
        let d_input = self.d_input();
        check_columns(columns, d_input)?;
        let device = self.device().inner();
        let salient = match &self.form {
            Form::Dense(linear) => {
                successor(&linear.weight, |weight| weight.transpose().select(1, indices(columns, &device)))
            }
            Form::Bit(linear) => {
                successor(&linear.weight, |weight| weight.select(1, indices(columns, &device)))
            }
            Form::Packed(_) => return Err(LayerError::NoLatentWeight),
        };
        let rest = rest_of(columns, d_input);
        self.form = self.with_operand_weight(|weight| weight.select(1, indices(&rest, &device)))?;
        self.outliers = Some(Outliers::Salient(Salient { weight: salient, columns: columns.to_vec() }));
        Ok(true)
    }

    /// The form with a changed weight, `[d_output, ..]`.
    fn with_operand_weight(&self, change: impl FnOnce(Tensor<2>) -> Tensor<2>) -> Result<Form, LayerError> {
        Ok(match &self.form {
            Form::Dense(linear) => Form::Dense(Linear {
                weight: successor(&linear.weight, |weight| change(weight.transpose()).transpose()),
                ..linear.clone()
            }),
            Form::Bit(linear) => {
                let weight = successor(&linear.weight, change);
                Form::Bit(BitLinear::new(weight, linear.bias.clone(), linear.quantization())?)
            }
            Form::Packed(_) => return Err(LayerError::NoLatentWeight),
        })
    }
}

// Least squares with few unknowns that may not be negative.
#include <algorithm>
#include <cmath>
#include <limits>

#include "base/error.hpp"
#include "train/plan/calibrate.hpp"

namespace flanmoe {
namespace {

using Matrix = std::vector<std::vector<double>>;

/// Solves a x = b by elimination with pivots; false when a is singular.
bool solve(Matrix a, std::vector<double> b, std::vector<double>& x) {
  const std::size_t n = b.size();
  for (std::size_t column = 0; column < n; ++column) {
    std::size_t pivot = column;
    for (std::size_t row = column; row < n; ++row) {
      if (std::abs(a[row][column]) > std::abs(a[pivot][column])) pivot = row;
    }
    if (std::abs(a[pivot][column]) < 1e-12) return false;
    std::swap(a[pivot], a[column]);
    std::swap(b[pivot], b[column]);
    for (std::size_t row = column + 1; row < n; ++row) {
      const double factor = a[row][column] / a[column][column];
      for (std::size_t k = column; k < n; ++k) a[row][k] -= factor * a[column][k];
      b[row] -= factor * b[column];
    }
  }
  x.assign(n, 0);
  for (std::size_t row = n; row-- > 0;) {
    double rest = b[row];
    for (std::size_t k = row + 1; k < n; ++k) rest -= a[row][k] * x[k];
    x[row] = rest / a[row][row];
  }
  return true;
}

/// The fit that uses the columns of `chosen` only; false when one of its coefficients is negative.
bool fit_columns(const Matrix& relative, const std::vector<std::size_t>& chosen, std::vector<double>& coefficients,
                 double& error) {
  const std::size_t n = chosen.size();
  Matrix normal(n, std::vector<double>(n, 0));
  std::vector<double> right(n, 0), x;
  for (const auto& row : relative) {
    for (std::size_t i = 0; i < n; ++i) {
      right[i] += row[chosen[i]];
      for (std::size_t j = 0; j < n; ++j) normal[i][j] += row[chosen[i]] * row[chosen[j]];
    }
  }
  if (!solve(normal, right, x) || *std::min_element(x.begin(), x.end()) < 0) return false;
  error = 0;
  for (const auto& row : relative) {
    double sum = -1;
    for (std::size_t i = 0; i < n; ++i) sum += x[i] * row[chosen[i]];
    error += sum * sum;
  }
  std::fill(coefficients.begin(), coefficients.end(), 0.0);
  for (std::size_t i = 0; i < n; ++i) coefficients[chosen[i]] = x[i];
  return true;
}

}  // namespace

std::vector<double> fit_times(const Matrix& rows, const std::vector<double>& times) {
  FLANMOE_EXPECT(!rows.empty() && rows.size() == times.size(), "{} rows, {} times", rows.size(), times.size());
  const std::size_t columns = rows.front().size();
  // Rows relative to their times, columns relative to their largest entry: well scaled.
  std::vector<double> scale(columns, 0);
  Matrix relative = rows;
  for (std::size_t i = 0; i < rows.size(); ++i) {
    for (std::size_t j = 0; j < columns; ++j) {
      relative[i][j] /= times[i];
      scale[j] = std::max(scale[j], std::abs(relative[i][j]));
    }
  }
  for (auto& row : relative) {
    for (std::size_t j = 0; j < columns; ++j) row[j] /= scale[j] > 0 ? scale[j] : 1;
  }
  std::vector<double> best(columns, 0);
  double least = std::numeric_limits<double>::infinity();
  for (std::size_t set = 1; set < (std::size_t{1} << columns); ++set) {
    std::vector<std::size_t> chosen;
    for (std::size_t j = 0; j < columns; ++j) {
      if ((set >> j & 1U) != 0 && scale[j] > 0) chosen.push_back(j);
    }
    std::vector<double> coefficients(columns, 0);
    double error = 0;
    if (chosen.empty() || !fit_columns(relative, chosen, coefficients, error) || error >= least) continue;
    least = error;
    best = coefficients;
  }
  for (std::size_t j = 0; j < columns; ++j) best[j] /= scale[j] > 0 ? scale[j] : 1;
  return best;
}

}  // namespace flanmoe

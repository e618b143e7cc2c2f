"""How a matrix is cut into the blocks that are coded together."""

from edge_delta.operations import Predicted


def block_at(tensor: Predicted, element: int, elements_max: int) -> tuple[slice, slice]:
    """Rows and columns of the block that begins at an element.

    Whole rows where they fit, else a part of one row; always one run of elements in row-major order.

    Args:
        tensor: Its rows and columns.
        element: Index of the first element, in row-major order, where a block may begin.
        elements_max: Elements of a block, at least 1.
    """
    row, column = divmod(element, tensor.columns)
    if column or tensor.columns > elements_max:
        return slice(row, row + 1), slice(column, min(tensor.columns, column + elements_max))
    return slice(row, min(tensor.rows, row + elements_max // tensor.columns)), slice(0, tensor.columns)

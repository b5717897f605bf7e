"""An ONNX graph with its wiring indexed, so that it can be rewritten node by node.

What this module keeps true: after each method the index agrees with the nodes; nodes stay in an order in which everything is
made before it is read.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy.typing as npt
import onnx
from onnx import numpy_helper


class Wiring:
    """A graph, rewired through these methods only.

    ``nodes`` in order, ``outputs`` the names of the graph's outputs, ``values`` the constants by name, ``shapes`` the shapes
    that are known (free axes are 0), ``maker`` and ``users`` who makes and who reads a tensor.
    """

    def __init__(self, proto: onnx.GraphProto) -> None:
        self.nodes: list[onnx.NodeProto] = list(proto.node)
        self.outputs = {output.name for output in proto.output}
        self.values = {tensor.name: numpy_helper.to_array(tensor) for tensor in proto.initializer}
        for node in self.nodes:
            if node.op_type == "Constant" and node.attribute[0].name == "value":
                self.values[node.output[0]] = numpy_helper.to_array(node.attribute[0].t)
        self.shapes = {
            info.name: tuple(axis.dim_value for axis in info.type.tensor_type.shape.dim)
            for info in (*proto.input, *proto.value_info)
        }
        self.added: list[onnx.TensorProto] = []
        self.gone: set[int] = set()
        self.maker: dict[str, onnx.NodeProto] = {}
        self.users: dict[str, list[onnx.NodeProto]] = {}
        for node in self.nodes:
            self.maker.update(dict.fromkeys(node.output, node))
            for name in node.input:
                self.users.setdefault(name, []).append(node)

    def sole_user(self, name: str) -> onnx.NodeProto | None:
        """The only reader of a tensor that is no output of the graph."""
        users = self.users.get(name, [])
        return users[0] if len(users) == 1 and name not in self.outputs else None

    def only_for(self, name: str, node: onnx.NodeProto) -> bool:
        """Whether ``node`` is the only reader of a tensor that is no output of the graph."""
        return self.sole_user(name) is node

    def pair(self, name: str) -> onnx.NodeProto | None:
        """The DequantizeLinear with constant scale that makes a tensor."""
        node = self.maker.get(name)
        return (
            node if node is not None and node.op_type == "DequantizeLinear" and node.input[1] in self.values else None
        )

    def rewire(self, node: onnx.NodeProto, position: int, name: str) -> None:
        """Let an input of ``node`` read another tensor."""
        readers = self.users[node.input[position]]
        del readers[next(index for index, one in enumerate(readers) if one is node)]
        node.input[position] = name
        self.users.setdefault(name, []).append(node)

    def remove(self, node: onnx.NodeProto) -> None:
        """Take a node out; its outputs must have no reader any more."""
        self.gone.add(id(node))
        for name in node.input:
            self.users[name] = [one for one in self.users[name] if one is not node]

    def replace(self, node: onnx.NodeProto, several: Sequence[onnx.NodeProto]) -> None:
        """Put ``several`` where ``node`` is; among them they make its outputs."""
        position = next(index for index, one in enumerate(self.nodes) if one is node)
        self.remove(node)
        self.insert(position, several)

    def before(self, node: onnx.NodeProto, several: Sequence[onnx.NodeProto]) -> None:
        """Put ``several`` before ``node``."""
        self.insert(next(index for index, one in enumerate(self.nodes) if one is node), several)

    def insert(self, position: int, several: Sequence[onnx.NodeProto]) -> None:
        """Put ``several`` at a position of ``nodes``."""
        self.nodes[position:position] = several
        for node in several:
            self.maker.update(dict.fromkeys(node.output, node))
            for name in node.input:
                self.users.setdefault(name, []).append(node)

    def constant(self, name: str, value: npt.NDArray[Any]) -> str:
        """Add an initializer and return its name."""
        self.added.append(numpy_helper.from_array(value, name))
        self.values[name] = value
        return name

    def write(self, proto: onnx.GraphProto) -> None:
        """Put nodes and initializers back, without those that nothing reads."""
        nodes = [node for node in self.nodes if id(node) not in self.gone]
        read = {name for node in nodes for name in node.input} | self.outputs
        nodes = [node for node in nodes if node.op_type != "Constant" or node.output[0] in read]
        tensors = [tensor for tensor in (*proto.initializer, *self.added) if tensor.name in read]
        # What was said of types and shapes between the nodes need not hold any more.
        del proto.node[:], proto.initializer[:], proto.value_info[:]
        proto.node.extend(nodes)
        proto.initializer.extend(tensors)

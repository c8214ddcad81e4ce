"""Classic BPF -> LLVM IR: one function per filter, inlined where the graph asks it.

Every load is checked against the packet's end, and fails the whole filter as libpcap has it. Loads are marked
invariant (grabbing never writes to a packet), so the optimiser shares them between the filters of a segment.
"""

from __future__ import annotations

from llvmlite import ir

from ffpf_bpf.graph import predicate as cbpf
from ffpf_bpf.graph.predicate import Instruction, Program

I1, I8, I16, I32, I64 = (ir.IntType(bits) for bits in (1, 8, 16, 32, 64))
POINTER = ir.PointerType()
# The verifier wants a bound on a variable offset into the packet (MAX_PACKET_OFF); no frame is longer.
FARTHEST_OFFSET = 0xFFF0

PREDICATE_TYPE = ir.FunctionType(I1, [POINTER, POINTER, I32])


def lower_predicate(module: ir.Module, program: Program, name: str) -> ir.Function:
    """The function `i1 name(data, end, wire length)` that tells whether the filter passes the packet."""
    function = ir.Function(module, PREDICATE_TYPE, name)
    function.linkage = "internal"
    function.attributes.add("alwaysinline")
    _Lowering(function, program).run()
    return function


class _Lowering:
    """One filter. A, X and the cells are stack slots, which the optimiser turns into registers."""

    def __init__(self, function: ir.Function, program: Program) -> None:
        self.data, self.end, self.length = function.args
        self.instructions = program.instructions
        entry = function.append_basic_block("entry")
        self.blocks = [function.append_basic_block(f"i{number}") for number in range(len(program.instructions))]
        self.reject = function.append_basic_block("reject")
        self.builder = ir.IRBuilder(entry)
        self.a, self.x = self.builder.alloca(I32), self.builder.alloca(I32)
        self.cells: dict[int, ir.AllocaInstr] = {}
        for used in sorted({i.k for i in program.instructions if _touches_cell(i)}):
            self.cells[used] = self.builder.alloca(I32)
        for register in (self.a, self.x, *self.cells.values()):
            self.builder.store(I32(0), register)
        self.invariant = function.module.add_metadata([])
        self.builder.branch(self.blocks[0])
        ir.IRBuilder(self.reject).ret(I1(0))

    def run(self) -> None:
        for index, instruction in enumerate(self.instructions):
            self.builder.position_at_end(self.blocks[index])
            self._lower(index, instruction)
            if not self.builder.block.is_terminated:
                self.builder.branch(self.blocks[index + 1])

    def _lower(self, index: int, i: Instruction) -> None:
        b = self.builder
        match i.kind:
            case cbpf.LD:
                b.store(self._load(i), self.a)
            case cbpf.LDX:
                b.store(self._load(i), self.x)
            case cbpf.ST:
                b.store(self._get(self.a), self.cells[i.k])
            case cbpf.STX:
                b.store(self._get(self.x), self.cells[i.k])
            case cbpf.ALU:
                b.store(self._calculate(i), self.a)
            case cbpf.JMP if i.operation == cbpf.JA:
                b.branch(self.blocks[index + 1 + i.k])
            case cbpf.JMP:
                b.cbranch(
                    self._condition(i), self.blocks[index + 1 + i.jump_true], self.blocks[index + 1 + i.jump_false]
                )
            case cbpf.RET if i.code & 0x18 == cbpf.RET_A:
                b.ret(b.icmp_unsigned("!=", self._get(self.a), I32(0)))
            case cbpf.RET:
                b.ret(I1(int(i.k != 0)))
            case cbpf.MISC if i.code & 0xF8 == cbpf.TXA:
                b.store(self._get(self.x), self.a)
            case _:
                b.store(self._get(self.a), self.x)

    def _get(self, register: ir.Value) -> ir.Value:
        return self.builder.load(register, typ=I32)

    def _load(self, i: Instruction) -> ir.Value:
        b = self.builder
        match i.mode:
            case cbpf.IMM:
                return I32(i.k)
            case cbpf.ABS:
                return self._packet(I64(i.k), i.size) if i.k <= FARTHEST_OFFSET else self._out_of_bounds()
            case cbpf.IND:
                # Added in 64 bits: an index of 2^32 and more lies outside the packet, it does not wrap.
                return self._packet(self._bounded(b.add(b.zext(self._get(self.x), I64), I64(i.k))), i.size)
            case cbpf.MEM:
                return self._get(self.cells[i.k])
            case cbpf.LEN:
                return self.length
            case cbpf.MSH:
                byte = self._packet(I64(i.k), 1) if i.k <= FARTHEST_OFFSET else self._out_of_bounds()
                return b.shl(b.and_(byte, I32(0xF)), I32(2))
            case other:
                raise ValueError(f"unknown load mode {other:#x}")

    def _bounded(self, offset: ir.Value) -> ir.Value:
        """The offset, rejected if no packet reaches it; opaque to the optimiser, so that the check stays on it."""
        b = self.builder
        bounded = opaque(b, offset)
        self._continue_if(b.icmp_unsigned("<=", bounded, I64(FARTHEST_OFFSET)))
        return bounded

    def _packet(self, offset: ir.Value, size: int) -> ir.Value:
        b = self.builder
        start = b.gep(self.data, [offset], source_etype=I8)
        end = b.gep(start, [I64(size)], source_etype=I8)
        self._continue_if(b.icmp_unsigned("<=", end, self.end))
        kind = {1: I8, 2: I16, 4: I32}[size]
        # Said to be aligned, as every XDP program in C says: where that matters, the verifier checks it.
        value = b.load(start, typ=kind, align=size)
        value.set_metadata("invariant.load", self.invariant)
        if size > 1:
            value = b.bswap(value)
        return value if size == 4 else b.zext(value, I32)

    def _out_of_bounds(self) -> ir.Value:
        self._continue_if(I1(0))
        return I32(0)

    def _continue_if(self, condition: ir.Value) -> None:
        block = self.builder.append_basic_block()
        self.builder.cbranch(condition, block, self.reject)
        self.builder.position_at_end(block)

    def _calculate(self, i: Instruction) -> ir.Value:
        b = self.builder
        a = self._get(self.a)
        operand = self._get(self.x) if i.by_x else I32(i.k)
        match i.operation:
            case cbpf.ADD:
                return b.add(a, operand)
            case cbpf.SUB:
                return b.sub(a, operand)
            case cbpf.MUL:
                return b.mul(a, operand)
            case cbpf.DIV | cbpf.MOD:
                self._continue_if(b.icmp_unsigned("!=", operand, I32(0)))
                return b.udiv(a, operand) if i.operation == cbpf.DIV else b.urem(a, operand)
            case cbpf.OR:
                return b.or_(a, operand)
            case cbpf.AND:
                return b.and_(a, operand)
            case cbpf.XOR:
                return b.xor(a, operand)
            case cbpf.LSH | cbpf.RSH:
                in_range = b.icmp_unsigned("<", operand, I32(32))
                count = b.select(in_range, operand, I32(0))
                shifted = b.shl(a, count) if i.operation == cbpf.LSH else b.lshr(a, count)
                return b.select(in_range, shifted, I32(0))
            case cbpf.NEG:
                return b.neg(a)
            case other:
                raise ValueError(f"unknown operation {other:#x}")

    def _condition(self, i: Instruction) -> ir.Value:
        b = self.builder
        a = self._get(self.a)
        operand = self._get(self.x) if i.by_x else I32(i.k)
        match i.operation:
            case cbpf.JEQ:
                return b.icmp_unsigned("==", a, operand)
            case cbpf.JGT:
                return b.icmp_unsigned(">", a, operand)
            case cbpf.JGE:
                return b.icmp_unsigned(">=", a, operand)
            case cbpf.JSET:
                return b.icmp_unsigned("!=", b.and_(a, operand), I32(0))
            case other:
                raise ValueError(f"unknown jump {other:#x}")


def opaque(builder: ir.IRBuilder, value: ir.Value) -> ir.Value:
    """The 64-bit value again, without what the optimiser knows of it: a check of it stays on the register it checks."""
    return builder.asm(ir.FunctionType(I64, [I64]), "", "=r,0", [value], side_effect=False)


def forget(builder: ir.IRBuilder, value: ir.Value, unknown: ir.Value) -> ir.Value:
    """The 64-bit value again, as something neither the optimiser nor the verifier knows: adds and takes away `unknown`,
    any 64-bit value the verifier has no bounds of."""
    return builder.sub(opaque(builder, builder.add(value, unknown)), unknown)


def _touches_cell(i: Instruction) -> bool:
    return i.kind in (cbpf.ST, cbpf.STX) or (i.kind in (cbpf.LD, cbpf.LDX) and i.mode == cbpf.MEM)

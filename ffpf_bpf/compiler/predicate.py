"""Classic BPF -> LLVM IR: one function per filter, inlined where the graph asks it.

A load beyond the packet's end fails the whole filter, as libpcap has it; `bounds` plans where to look. Loads are marked
invariant (grabbing never writes to a packet), so the optimiser shares them between the filters of a segment.
"""

from __future__ import annotations

from llvmlite import ir

from ffpf_bpf.compiler.bounds import HOPELESS, Look, plan_looks
from ffpf_bpf.graph import predicate as cbpf
from ffpf_bpf.graph.predicate import FARTHEST_BYTE, Instruction, Program

I1, I8, I16, I32, I64 = (ir.IntType(bits) for bits in (1, 8, 16, 32, 64))
POINTER = ir.PointerType()

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
        self.after_header = self.builder.alloca(I64)  # address X bytes into the packet, where X is a header length
        self.builder.store(I64(0), self.after_header)
        self.looks = plan_looks(program)
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
                b.store(self._load(i, self.looks[index]), self.a)
            case cbpf.LDX:
                b.store(self._load(i, self.looks[index]), self.x)
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

    def _load(self, i: Instruction, look: Look) -> ir.Value:
        b = self.builder
        match i.mode:
            case cbpf.IMM:
                return I32(i.k)
            case cbpf.ABS:
                self._look(self.data, look.start_bytes)
                return self._packet(self.data, i.k, i.size)
            case cbpf.IND if look.from_x:
                start = b.inttoptr(b.load(self.after_header, typ=I64), POINTER)
                self._look(start, look.x_bytes)
                return self._packet(start, i.k, i.size)
            case cbpf.IND:
                # Added in 64 bits: an index of 2^32 and more lies outside the packet, it does not wrap.
                offset = self._bounded(b.add(b.zext(self._get(self.x), I64), I64(i.k)))
                start = b.gep(self.data, [offset], source_etype=I8)
                self._look(start, i.size)
                return self._packet(start, 0, i.size)
            case cbpf.MEM:
                return self._get(self.cells[i.k])
            case cbpf.LEN:
                return self.length
            case cbpf.MSH:
                return self._header_length(i, look)
            case other:
                raise ValueError(f"unknown load mode {other:#x}")

    def _header_length(self, i: Instruction, look: Look) -> ir.Value:
        b = self.builder
        self._look(self.data, look.start_bytes)
        length = b.shl(b.and_(self._packet(self.data, i.k, 1), I32(0xF)), I32(2))
        address = b.add(b.ptrtoint(self.data, I64), b.zext(length, I64))
        # Opaque, so that all loads behind the header use this one register, which one look is good for.
        b.store(opaque(b, address), self.after_header)
        return length

    def _bounded(self, offset: ir.Value) -> ir.Value:
        """The offset, rejected if no packet reaches it; opaque to the optimiser, so that the check stays on it."""
        bounded = opaque(self.builder, offset)
        self._continue_if(self.builder.icmp_unsigned("<=", bounded, I64(FARTHEST_BYTE)))
        return bounded

    def _look(self, start: ir.Value, size: int) -> None:
        """End with no unless the packet has `size` bytes from `start`; 0: known already."""
        if size == HOPELESS:
            self._continue_if(I1(0))
        elif size:
            # In a register of its own: one that also served as an address would be beyond the packet, for the
            # verifier, on ways that are never taken.
            end = opaque(self.builder, self.builder.ptrtoint(self._at(start, size), I64))
            self._continue_if(self.builder.icmp_unsigned("<=", end, self.builder.ptrtoint(self.end, I64)))

    def _packet(self, start: ir.Value, offset: int, size: int) -> ir.Value:
        b = self.builder
        kind = {1: I8, 2: I16, 4: I32}[size]
        # Said to be aligned, as every XDP program in C says: where that matters, the verifier checks it.
        value = b.load(self._at(start, offset), typ=kind, align=size)
        value.set_metadata("invariant.load", self.invariant)
        if size > 1:
            value = b.bswap(value)
        return value if size == 4 else b.zext(value, I32)

    def _at(self, start: ir.Value, offset: int) -> ir.Value:
        return self.builder.gep(start, [I64(offset)], source_etype=I8)

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


def opaque(builder: ir.IRBuilder, value: ir.Value, *, pinned: bool = False) -> ir.Value:
    """The 64-bit value again, without what the optimiser knows of it: a check of it stays on the register it checks.
    A pinned one is also computed here and not later."""
    return builder.asm(ir.FunctionType(I64, [I64]), "", "=r,0", [value], side_effect=pinned)


def forget(builder: ir.IRBuilder, value: ir.Value, unknown: ir.Value) -> ir.Value:
    """The 64-bit value again, as something neither the optimiser nor the verifier knows: adds and takes away `unknown`,
    any 64-bit value the verifier has no bounds of. Pinned."""
    return builder.sub(opaque(builder, builder.add(value, unknown), pinned=True), unknown)


def _touches_cell(i: Instruction) -> bool:
    return i.kind in (cbpf.ST, cbpf.STX) or (i.kind in (cbpf.LD, cbpf.LDX) and i.mode == cbpf.MEM)

import { expect, test } from 'vitest'
import { wgmmaOperands } from '../../scripts/wgmma-operands.js'

const product = (a: string): string =>
  `{\nwgmma.mma_async.sync.aligned.m64n16k16.f32.f16.f16 {%f1, %f2},\n{${a}}, %rd1, keep, 1, 1, 0;\n}\nwgmma.commit_group.sync.aligned;`
const load = (to: string): string => `ld.shared.v4.u32 \t{${to}}, [%r90];`
const wait = (left: number): string => `wgmma.wait_group.sync.aligned ${left};`
const kernel = (...lines: string[]): string =>
  `.visible .entry k(\n\t.param .u64 p\n)\n{\n${lines.join('\n')}\n\tret;\n}\n`
const overwrites = (...lines: string[]): string[] =>
  wgmmaOperands(kernel(...lines)).flatMap((found) => found.overwrites)

const A = '%r1, %r2, %r3, %r4'
const B = '%r5, %r6, %r7, %r8'

test('operands may be written when their product is done', () => {
  expect(overwrites(load(A), product(A), wait(0), load(A))).toEqual([])
  expect(overwrites(load(A), load(B), product(A), product(B), wait(1), load(A))).toEqual([])
})

test('and not before', () => {
  expect(overwrites(load(A), product(A), load(A), wait(0))).toEqual([load(A)])
  expect(overwrites(product(A), product(B), wait(1), load(A), load(B))).toEqual([load(B)])
  expect(overwrites(product(A), 'mov.u32 %r3, 0;')).toEqual(['mov.u32 %r3, 0;'])
  expect(overwrites(product(A), '@%p1 add.s32 \t%r4, %r1, 1;')).toEqual(['@%p1 add.s32 \t%r4, %r1, 1;'])
})

test('reading them, and writing others, is no matter', () => {
  expect(overwrites(product(A), 'st.shared.u32 [%r1], %r2;', 'add.s32 %r9, %r1, %r2;', load(B))).toEqual([])
})

test('around a loop', () => {
  const loop = (...lines: string[]): string[] => ['$L1:', ...lines, '@%p1 bra \t$L1;']
  expect(overwrites(...loop(load(A), product(A)))).toEqual([load(A)])
  expect(overwrites(...loop(load(A), product(A), wait(0)))).toEqual([])
  expect(overwrites(...loop(load(A), product(A), load(B), wait(0), product(B), wait(1)))).toEqual([load(B)])
})

test('only kernels with such products count', () => {
  expect(wgmmaOperands(kernel(load(A)) + kernel(load(A), product(A)))).toEqual([{ kernel: 'k', overwrites: [] }])
})

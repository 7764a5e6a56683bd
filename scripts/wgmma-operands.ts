/**
 * Reads PTX for a mistake that no test finds for sure: wgmma reads its operands in registers after the instruction has
 * been issued, so nothing may write these before wgmma.wait_group says that the product is done (PTX ISA, asynchronous
 * warpgroup level matrix instructions). Neither ptxas nor compute-sanitizer speaks of it.
 */

/** Operands of products that were issued and not waited for: of each committed group, and of the one that is open. */
interface UnderWay {
  groups: string[][]
  open: string[]
}

const NOTHING: UnderWay = { groups: [], open: [] }
/** Instructions whose first operand is not a result. */
const NO_RESULT = /^(st|bra|red|cp|bar|mbarrier\.arrive|prefetch|ret|wgmma|fence|membar)\b/

/** Statements of a kernel's body; labels and braces are statements of their own. */
function statementsOf(body: string): string[] {
  const statements: string[] = []
  let open = ''
  for (const line of body.split('\n')) {
    open = `${open} ${line.replace(/\/\/.*/, '')}`.trim()
    if (!/[;:{}]$/.test(open)) continue
    statements.push(open)
    open = ''
  }
  return statements
}

const registersIn = (text: string): string[] => text.match(/%r\d+/g) ?? []

function writtenBy(statement: string): string[] {
  const [, name = '', operands = ''] = /^(?:@!?%p\d+\s+)?([a-z][\w.:]*)\s+(.*);$/s.exec(statement) ?? []
  if (name === '' || NO_RESULT.test(name)) return []
  return registersIn(
    operands.startsWith('{') ? operands.slice(0, operands.indexOf('}')) : (operands.split(',')[0] ?? ''),
  )
}

/** What is under way behind some statements, run in a row; `found` is told of each that writes an operand too early. */
function walk(statements: readonly string[], before: UnderWay, found: (statement: string) => void): UnderWay {
  const groups = [...before.groups]
  let open = [...before.open]
  for (const statement of statements) {
    if (statement.includes('wgmma.mma_async')) {
      // D, then A: in registers it is the last group in braces.
      open.push(...registersIn(statement.match(/\{[^{}]*\}/g)?.at(-1) ?? ''))
    } else if (statement.includes('wgmma.commit_group')) {
      groups.push(open)
      open = []
    } else if (statement.includes('wgmma.wait_group')) {
      groups.splice(0, groups.length - Number(/(\d+);$/.exec(statement)?.[1] ?? 0))
    } else {
      const written = writtenBy(statement)
      if (written.length > 0 && [...groups.flat(), ...open].some((operand) => written.includes(operand)))
        found(statement)
    }
  }
  return { groups, open }
}

/** In the order of the text, and around each loop once more behind itself. */
function overwritesIn(statements: readonly string[]): string[] {
  const found = new Set<string>()
  const add = (statement: string): unknown => found.add(statement)
  walk(statements, NOTHING, add)
  const labels = new Map(statements.flatMap((text, i) => (text.endsWith(':') ? [[text.slice(0, -1), i] as const] : [])))
  for (const [i, statement] of statements.entries()) {
    const begin = labels.get(/\bbra(?:\.uni)?\s+(\S+);$/.exec(statement)?.[1] ?? '')
    if (begin === undefined || begin > i) continue
    const loop = statements.slice(begin, i)
    walk(loop, walk(loop, NOTHING, add), add)
  }
  return [...found]
}

/** A kernel with such products and the statements in it that write an operand too early. */
export interface KernelOperands {
  kernel: string
  overwrites: string[]
}

/** The kernels of a PTX text that have wgmma products. */
export function wgmmaOperands(ptx: string): KernelOperands[] {
  return ptx
    .split(/^\.visible \.entry /m)
    .slice(1)
    .filter((text) => text.includes('wgmma.mma_async'))
    .map((text) => ({
      kernel: text.slice(0, text.indexOf('(')),
      overwrites: overwritesIn(statementsOf(text.slice(text.indexOf('\n{')))),
    }))
}

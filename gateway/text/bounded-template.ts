import { Template } from '@huggingface/jinja'

/** A node of the template's syntax tree, as the library makes it. */
interface Node {
  type: string
  [field: string]: unknown
}

/** Node types that cost no more than the size of what they read, and which of their fields hold nodes. */
const LINEAR: Record<string, readonly string[]> = {
  Program: ['body'],
  Comment: [],
  If: ['test', 'body', 'alternate'],
  Ternary: ['condition', 'trueExpr', 'falseExpr'],
  Identifier: [],
  StringLiteral: [],
  IntegerLiteral: [],
  FloatLiteral: [],
  MemberExpression: ['object', 'property'],
  SliceExpression: ['start', 'stop', 'step'],
  UnaryExpression: ['argument'],
  TestExpression: ['operand', 'test'],
}
const OPERATORS = new Set(['+', '~', '==', '!=', '<', '>', '<=', '>=', 'and', 'or', 'in', 'not in'])
const FILTERS = new Set(['trim', 'length', 'upper', 'lower', 'first', 'last'])
const METHODS = new Set(['strip', 'lstrip', 'rstrip', 'startswith', 'endswith', 'upper', 'lower'])
/** Expressions that give no more than (a part of) one of the variables. */
const SELECTING = new Set(['Identifier', 'MemberExpression', 'StringLiteral', 'IntegerLiteral'])

/**
 * The number of nodes of a template whose work is bounded: rendering takes at most nodes x messages x characters
 * steps. Undefined when that cannot be seen from its syntax: loops in loops, values that may grow from line to line,
 * macros, and whatever is not known here.
 */
export function boundedSize(source: string): number | undefined {
  let nodes = 0
  const walk = (node: unknown, inLoop: boolean): boolean => {
    if (node === undefined || node === null) return true
    if (Array.isArray(node)) return node.every((entry) => walk(entry, inLoop))
    nodes++
    return isNode(node) && isBounded(node, inLoop, walk)
  }
  try {
    return walk(new Template(source).parsed, false) ? nodes : undefined
  } catch {
    return undefined
  }
}

function isBounded(node: Node, inLoop: boolean, walk: (node: unknown, inLoop: boolean) => boolean): boolean {
  const fields = LINEAR[node.type]
  if (fields) return fields.every((field) => walk(node[field], inLoop))
  switch (node.type) {
    case 'For':
      return (
        !inLoop &&
        typeOf(node.iterable) === 'Identifier' &&
        typeOf(node.loopvar) === 'Identifier' &&
        walk([node.body, node.defaultBlock], true)
      )
    case 'Set':
      return (
        typeOf(node.assignee) === 'Identifier' &&
        SELECTING.has(typeOf(node.value)) &&
        Array.isArray(node.body) &&
        node.body.length === 0 &&
        walk(node.value, inLoop)
      )
    case 'BinaryExpression':
      return OPERATORS.has(nameOf(node.operator)) && walk([node.left, node.right], inLoop)
    case 'FilterExpression':
      return typeOf(node.filter) === 'Identifier' && FILTERS.has(nameOf(node.filter)) && walk(node.operand, inLoop)
    case 'CallExpression':
      return isKnownCall(node.callee) && walk([node.callee, node.args], inLoop)
    default:
      return false
  }
}

function isKnownCall(callee: unknown): boolean {
  if (!isNode(callee)) return false
  if (callee.type === 'Identifier') return callee.value === 'raise_exception'
  return callee.type === 'MemberExpression' && callee.computed === false && METHODS.has(nameOf(callee.property))
}

function isNode(value: unknown): value is Node {
  return typeof value === 'object' && value !== null && 'type' in value && typeof value.type === 'string'
}

function typeOf(node: unknown): string {
  return isNode(node) ? node.type : ''
}

function nameOf(node: unknown): string {
  return isNode(node) && typeof node.value === 'string' ? node.value : ''
}

/** Characters that a bounded template may handle on the event loop; a few milliseconds' work at the worst. */
const MAX_WORK = 2 ** 24

/** Renders a template on the event loop where that is bounded; see `boundedSize`. */
export class BoundedTemplate {
  readonly #template: Template
  readonly #nodes: number
  readonly #constants: Record<string, string>
  readonly #maxLength: number

  private constructor(source: string, nodes: number, constants: Record<string, string>, maxLength: number) {
    this.#template = new Template(source)
    this.#nodes = nodes
    this.#constants = constants
    this.#maxLength = maxLength
  }

  /** Undefined when the template's work cannot be bounded. */
  static from(source: string, constants: Record<string, string>, maxLength: number): BoundedTemplate | undefined {
    const nodes = boundedSize(source)
    return nodes === undefined ? undefined : new BoundedTemplate(source, nodes, constants, maxLength)
  }

  /**
   * The text, or undefined when these messages are too much to do here, or the template fails: the isolated renderer
   * then says how.
   */
  render(variables: Record<string, unknown>, messages: number, characters: number): string | undefined {
    if (this.#nodes * messages * (characters + OVERHEAD) > MAX_WORK) return undefined
    try {
      const text = this.#template.render({ ...this.#constants, ...variables })
      return text.length > this.#maxLength ? undefined : text
    } catch {
      return undefined
    }
  }
}

/** Of a message beside its text: role, separators. */
const OVERHEAD = 64

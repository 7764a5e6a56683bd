import {
  type Document,
  isCollection,
  isMap,
  isNode,
  isScalar,
  LineCounter,
  type Node,
  parseDocument,
  visit,
} from 'yaml'
import { type ConfigProblem, type Finding, formatPath, type KeyPath, MAX_PROBLEMS } from './problem.js'

/** A models.yaml larger than this is refused unread. */
export const MAX_FILE_BYTES = 256 * 1024
const MAX_OPEN = 64
const MAX_COMPACT = 16
const MAX_INDENT = 256

/** A parsed file that knows where each of its keys and values stands. */
export interface YamlSource {
  value: unknown
  locate(finding: Finding): ConfigProblem
}

/** Parses YAML 1.2 without anchors and aliases. Faults of the text itself come as problems. */
export function parseYaml(text: string): YamlSource | ConfigProblem[] {
  const lines = new LineCounter()
  const tooDeep = deepNesting(text)
  if (tooDeep) return [{ line: tooDeep, column: 1, path: '', message: 'nested too deep' }]
  const document = parseDocument(text, { lineCounter: lines, prettyErrors: false, strict: true, uniqueKeys: true })
  const problem = (offset: number, message: string, path = ''): ConfigProblem => {
    const { line, col } = lines.linePos(offset)
    return { line, column: col, path, message }
  }
  const faults = [...document.errors, ...document.warnings]
    .slice(0, MAX_PROBLEMS)
    .map((error) => problem(error.pos[0], error.message))
  if (faults.length > 0) return faults
  const forbidden = forbiddenNodes(document)
    .slice(0, MAX_PROBLEMS)
    .map(([offset, message]) => problem(offset, message))
  if (forbidden.length > 0) return forbidden
  const locate = (finding: Finding) => problem(offsetOf(document, finding), finding.message, formatPath(finding.path))
  return { value: document.toJS({ maxAliasCount: 0 }), locate }
}

/**
 * Line at which the text is certainly nested too deep, or 0. Needs no parser and so protects the parser, whose
 * recursion and indentation patterns do not survive thousands of levels.
 */
function deepNesting(text: string): number {
  let open = 0
  for (const [index, line] of text.split('\n').entries()) {
    for (const character of line) {
      if (character === '[' || character === '{') open++
      else if (character === ']' || character === '}') open = Math.max(0, open - 1)
      if (open > MAX_OPEN) return index + 1
    }
    const compact = /^(?:\s*[-?:]\s)+/.exec(line)?.[0].match(/[-?:]/g)?.length ?? 0
    const indent = /^\s*/.exec(line)?.[0].length ?? 0
    if (compact > MAX_COMPACT || indent > MAX_INDENT) return index + 1
  }
  return 0
}

/** Anchors, aliases, merge keys, tags and keys that are not plain strings: none is needed here, each has surprised someone. */
function forbiddenNodes(document: Document.Parsed): [offset: number, message: string][] {
  const found: [number, string][] = []
  const report = (node: unknown, message: string) => found.push([isNode(node) ? (node.range?.[0] ?? 0) : 0, message])
  visit(document, {
    Alias: (_, node) => void report(node, 'aliases are not allowed here'),
    Node: (_, node) => {
      if ('anchor' in node && node.anchor !== undefined) report(node, 'anchors are not allowed here')
      if (node.tag?.startsWith('!')) report(node, `the tag ${node.tag} is not allowed here`)
    },
    Pair: (_, pair) => {
      if (!isScalar(pair.key) || typeof pair.key.value !== 'string') report(pair.key, 'a key must be a plain string')
      else if (pair.key.value === '__proto__') report(pair.key, 'unknown key "__proto__"')
    },
  })
  return found
}

/** Offset of the key or value at a path; of the nearest parent where the path does not exist in the text. */
function offsetOf(document: Document.Parsed, { path, key }: Finding): number {
  let node: Node | null = document.contents
  let offset = node?.range?.[0] ?? 0
  for (const [depth, part] of path.entries()) {
    if (!isCollection(node)) return offset
    const last = depth === path.length - 1
    if (last && key) return keyOffset(node, part) ?? offset
    const child: unknown = node.get(part, true)
    if (!isNode(child)) return keyOffset(node, part) ?? offset
    node = child
    offset = child.range?.[0] ?? offset
  }
  return offset
}

function keyOffset(node: Node, key: KeyPath[number]): number | undefined {
  if (!isMap(node)) return undefined
  const pair = node.items.find((item) => isScalar(item.key) && item.key.value === key)
  return isNode(pair?.key) ? pair.key.range?.[0] : undefined
}

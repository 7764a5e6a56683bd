import { describe, expect, it } from 'vitest'
import { accepts, tinyKeeper } from '../support/grammar-walk.js'

const keeperOf = (ebnf: string): ReturnType<typeof tinyKeeper> => tinyKeeper({ $case: 'ebnf', ebnf })

/** As llama.cpp's grammars/json.gbnf. */
const JSON_GBNF = String.raw`
root   ::= object
value  ::= object | array | string | number | ("true" | "false" | "null") ws

object ::=
  "{" ws (
            string ":" ws value
    ("," ws string ":" ws value)*
  )? "}" ws

array  ::=
  "[" ws (
            value
    ("," ws value)*
  )? "]" ws

string ::=
  "\"" (
    [^"\\\x7F\x00-\x1F] |
    "\\" (["\\bfnrt] | "u" [0-9a-fA-F]{4}) # escapes
  )* "\"" ws

number ::= ("-"? ([0-9] | [1-9] [0-9]{0,15})) ("." [0-9]+)? ([eE] [-+]? [0-9] [1-9]{0,15})? ws

# Optional space: by convention, applied in this grammar after literal chars when allowed
ws ::= | " " | "\n" [ \t]{0,20}
`

/** As llama.cpp's grammars/arithmetic.gbnf. */
const ARITHMETIC = `
root  ::= (expr "=" ws term "\\n")+
expr  ::= term ([-+*/] term)*
term  ::= ident | num | "(" ws expr ")" ws
ident ::= [a-z] [a-z0-9_]* ws
num   ::= [0-9]+ ws
ws    ::= [ \\t\\n]*
`

const LIST = `
root ::= item+

# Excludes various line break characters
item ::= "- " [^\\r\\n\\x0b\\x0c\\x85\\u2028\\u2029]+ "\\n"
`

/** As vLLM's guided decoding example. */
const SQL = `
root ::= select_statement
select_statement ::= "SELECT " column " from " table " where " condition
column ::= "col_1 " | "col_2 "
table ::= "table_1 " | "table_2 "
condition ::= column "= " number
number ::= "1 " | "2 "
`

describe('a grammar in EBNF', () => {
  it.each([
    ['literals', 'root ::= "ab" "c"', ['abc'], ['', 'ab', 'abcd']],
    ['nothing', 'root ::= ""', [''], ['a']],
    ['no items', 'root ::=', [''], ['a']],
    ['alternatives', 'root ::= "a" | "bc" | "b"', ['a', 'bc', 'b'], ['ab', 'c', '']],
    ['an empty alternative', 'root ::= "a" |', ['a', ''], ['aa']],
    [
      'literals that begin alike',
      'root ::= "a" | "ab" | "abc" | "abd" | "ab" | ""',
      ['', 'a', 'ab', 'abc', 'abd'],
      ['abcd', 'b'],
    ],
    ['a group', 'root ::= "a" ("b" | "c" "d") "e"', ['abe', 'acde'], ['abcde', 'ae']],
    ['*', 'root ::= "ab"*', ['', 'ab', 'ababab'], ['a', 'aba']],
    ['+', 'root ::= [ab]+', ['a', 'bab'], ['', 'c']],
    ['?', 'root ::= "a"? "b"', ['b', 'ab'], ['aab', '']],
    ['{n}', 'root ::= "a"{3}', ['aaa'], ['aa', 'aaaa']],
    ['{m,n}', 'root ::= "ab"{1,3}', ['ab', 'ababab'], ['', 'abababab']],
    ['{m,}', 'root ::= [a-c]{2,}', ['ab', 'abcabc'], ['a']],
    ['{,n}', 'root ::= "a"{,2}', ['', 'aa'], ['aaa']],
    ['{ m , n }', 'root ::= "a" { 1 , 2 }', ['a', 'aa'], ['']],
    ['{0}', 'root ::= "a"{0} missing{0} "b"', ['b'], ['ab']],
    ['repeats of repeats', 'root ::= ("a"* "b"?)* "c"', ['c', 'aabbac'], ['']],
    ['repeats one after another', 'root ::= "a"{2}{2}?', ['', 'aaaa'], ['aa', 'aaa']],
    ['repeats of nothing', 'root ::= ("" | "a"?)+ ""* "b"', ['b', 'aaab'], ['a']],
    ['many repeats', 'root ::= ("é"{1,100} "."){0,100}', ['', 'é.éé.', `${'é'.repeat(100)}.`], [`${'é'.repeat(101)}.`]],
    ['.', 'root ::= .', ['a', 'é', '😀', '\n'], ['', 'ab']],
    ['classes', 'root ::= [a-cx_]+', ['abcx_'], ['d', '-']],
    ['negated classes', 'root ::= [^a-c\\n]', ['d', '😀', 'é'], ['a', '\n', '']],
    ['a class of all', 'root ::= [^]', ['a', '\n', '😀'], ['']],
    ['a class of none', 'root ::= [] | "b"', ['b'], ['', '[']],
    ['minus in classes', 'root ::= [-a]+ [a-] [a\\-c] [+--]', ['-a-a-', '-aaa,', 'a--+'], ['bbbb', '-ab+']],
    ['brackets in classes', 'root ::= [\\]\\[^]+ ["]', ['][^"'], ['"']],
    ['astral classes', 'root ::= [😀-😂]+', ['😀😁😂'], ['😃']],
    ['escapes', 'root ::= "\\n\\r\\t\\"\\\\\\x41\\u00e9\\U0001F600\\0"', ['\n\r\t"\\Aé😀\0'], ['']],
    ['escapes in classes', 'root ::= [\\x41-\\x43\\u00e9\\U0001F600-\\U0001F602\\t]+', ['ABCé😁\t'], ['D', 'x']],
    ['halves of a character', 'root ::= "\\uD83D\\uDE00"', ['😀'], ['']],
    ['comments', '# first\nroot ::= # then\n "a" # "b"\n # "c"\n | "#"', ['a', '#'], ['ab', 'ac']],
    ['rules over lines', 'root ::=\n  "a"\n  | two\n  "c"\n\ntwo ::= "b"\n?', ['a', 'bc', 'c'], ['ac', 'b']],
    ['rules in one line', 'root ::= a b a ::= "x" b ::= "y"', ['xy'], ['x']],
    ['Windows lines', 'root ::= a\r\n# b\r\na ::= "x"\r\n', ['x'], ['']],
    ['names', 'root ::= _a-b c_1 0-kv\n_a-b ::= "1"\nc_1 ::= "2"\n0-kv ::= "3"', ['123'], ['1']],
    ['rules that nothing calls', 'root ::= "a"\nother ::= nowhere', ['a'], ['']],
    [
      'balanced brackets',
      'root ::= ("(" root ")" | "[" root "]")*',
      ['', '()', '([])[()]', '('.repeat(300) + ')'.repeat(300)],
      ['(', '(]', '())'],
    ],
    ['palindromes', 'root ::= "a" root "a" | "b" root "b" | "c"', ['c', 'abcba'], ['abcab', '']],
    ['a rule that nothing ends', 'root ::= "a" | "b" endless\nendless ::= "c" endless', ['a'], ['b', 'bc']],
    [
      'json.gbnf',
      JSON_GBNF,
      ['{}', '{"a": [1, -2.5e3, "\\u00e9\\n"], "b":{"c":null}}', '{"a": "é😀"}\n'],
      ['[]', '{"a"}', '{"a":01}', '{"a":"\n"}'],
    ],
    ['arithmetic.gbnf', ARITHMETIC, ['1 +2 = 3\n', '(a*(b_2 -3))/4= x\n1=1\n'], ['1 + = 3\n', '1=1', '(1=1\n']],
    ['list.gbnf', LIST, ['- one\n', '- é\n- 😀 two\n'], ['', '- \n', '- one', '- a\u2028\n']],
    ['vLLM', SQL, ['SELECT col_1  from table_2  where col_2 = 1 '], ['SELECT col_3 ']],
  ])('%s', (_, ebnf, yes, no) => {
    const keeper = keeperOf(ebnf)
    expect(yes.filter((text) => !accepts(keeper, text))).toEqual([])
    expect(no.filter((text) => accepts(keeper, text))).toEqual([])
  })

  it.each([
    ['root ::= "a" | "a," root'],
    ['root ::= "a" ("," root)?'],
    ['root ::= "a" ("," root | "")'],
    ['root ::= "a" rest\nrest ::= | "," root'],
    ['root ::= "a" rest? end\nrest ::= "," "a" rest | "," "a"\nend ::= ""*'],
    ['root ::= ("a" ",")* "a"'],
    ['root ::= "a" ("," "a"){0,9999}'],
  ])('a long list needs no deep stacks: %s', (ebnf) => {
    const keeper = keeperOf(ebnf)
    const list = Array.from({ length: 5000 }, () => 'a').join(',')
    expect(accepts(keeper, list)).toBe(true)
    expect(accepts(keeper, `${list},`)).toBe(false)
  })

  it.each([
    ['root ::= )', 'line 1, column 10 of the grammar: a parenthesis that was not opened'],
    ['root ::= ("a"', 'line 1, column 14 of the grammar: a parenthesis is not closed'],
    ['root ::= ("a"\nb ::= "c")', 'line 2, column 1 of the grammar: a parenthesis is not closed'],
    ['root ::= "a"\n\n  ::= "b"', 'line 3, column 3 of the grammar: ":" was not expected'],
    ['= "b"', 'line 1, column 1 of the grammar: a rule must begin with its name'],
    ['root "b"', 'line 1, column 6 of the grammar: ::= must follow the name root'],
    ['root = "b"', 'line 1, column 6 of the grammar: ::= must follow the name root'],
    ['root ::= "b"\nroot ::= "c"', 'line 2, column 9 of the grammar: there is a rule root already'],
    ['root ::= "a', 'line 1, column 12 of the grammar: " is missing'],
    ['root ::= "a\nb"', 'line 1, column 12 of the grammar: " is missing'],
    ['root ::= [a', 'line 1, column 12 of the grammar: ] is missing'],
    ['root ::= [b-a]', 'line 1, column 14 of the grammar: a range that is none'],
    ['root ::= "\\x4"', 'line 1, column 12 of the grammar: an escape that is none'],
    ['root ::= "\\U00110000"', 'line 1, column 21 of the grammar: an escape beyond the last character'],
    ['root ::= "\\uD83D"', 'line 1, column 18 of the grammar: half a character'],
    ['root ::= "a"{}', 'line 1, column 13 of the grammar: { must be {n}, {m,} or {m,n}'],
    ['root ::= "a"{,}', 'line 1, column 13 of the grammar: { must be {n}, {m,} or {m,n}'],
    ['root ::= "a"{x}', 'line 1, column 13 of the grammar: { must be {n}, {m,} or {m,n}'],
    ['root ::= "a"{3,2}', 'line 1, column 13 of the grammar: a repeat from more to less'],
    ['root ::= "a"{10001}', 'line 1, column 13 of the grammar: more than 10000 repeats'],
    ['root ::= "a"{1,10001}', 'line 1, column 13 of the grammar: more than 10000 repeats'],
    ['root ::= *', 'line 1, column 10 of the grammar: "*" was not expected'],
    ['root ::= "a" & "b"', 'line 1, column 14 of the grammar: "&" was not expected'],
    ['root ::= /a/', 'line 1, column 10 of the grammar: "/" was not expected'],
    [`root ::= ${'('.repeat(300)}`, 'column 210 of the grammar: too many parentheses inside of one another'],
    ['other ::= "a"', 'the grammar has no rule root'],
    ['# nothing', 'the grammar has no rule root'],
    ['root ::= other', 'there is no rule other'],
    ['root ::= "a" | "b" (one | other)\none ::= "c"', 'there is no rule other'],
    ['', 'the grammar is empty'],
    ['root ::= root "a" | "b"', 'root begins with itself: left recursion is not kept'],
    [
      'root ::= "x" a\na ::= b "1" | "2"\nb ::= c\nc ::= a "3" | "4"',
      'a begins with itself: left recursion is not kept',
    ],
    ['root ::= empty root "a" | "b"\nempty ::= "c"?', 'root begins with itself: left recursion is not kept'],
    ['root ::= one root "a" | "b"\none ::= two two\ntwo ::= three*\nthree ::= "c"', 'root begins with itself'],
    ['root ::= (root "a" | "b"){2}', 'root begins with itself: left recursion is not kept'],
    ['root ::= "a" | root', 'root begins with itself: left recursion is not kept'],
    ['root ::= "b" | (root? "a")*', 'root begins with itself: left recursion is not kept'],
    ['root ::= "a" root', 'no text follows the grammar: nothing ends it'],
    ['root ::= root', 'no text follows the grammar: nothing ends it'],
    ['root ::= one\none ::= "a" two\ntwo ::= "b" one', 'no text follows the grammar: nothing ends it'],
    ['root ::= [] | [\\uD800]', 'no text follows the grammar: nothing ends it'],
    [
      'root ::= "ab"{10000} "cd"{10000,} ("ab" "cd"{10000}){9000} (("a"{10000} "b"){9999} "c"){10000} a b c d e f g h i j k l m n o p q r s t u v w x y z\n' +
        Array.from('abcdefghijklmnopqrstuvwxyz', (name) => `${name} ::= "${name}"{10000} "${name}"{10000}`).join('\n'),
      'the grammar is too large',
    ],
  ])('%s is refused', (ebnf, reason) => {
    expect(() => keeperOf(ebnf)).toThrow(reason)
  })

  it('a left recursion that no text goes through is none', () => {
    expect(accepts(keeperOf('root ::= "a" | one\none ::= one "b"'), 'a')).toBe(true)
  })

  it('that leaves too much open fails at work', () => {
    const open = keeperOf('root ::= ("a" | one)*\none ::= ("a" "b"? two)*\ntwo ::= "a" root | "a" one "a"')
    expect(() => accepts(open, 'a'.repeat(400))).toThrow('more than 10000 ways through the grammar are open at once')
  })

  it('of a chain of many rules that may be empty is read in no time', () => {
    const size = 3000
    const rules = Array.from({ length: size }, (_, i) => `r${i} ::= "a"? r${i + 1}`)
    const began = performance.now()
    const keeper = keeperOf(`root ::= r0\n${rules.join('\n')}\nr${size} ::= "b"?`)
    expect(accepts(keeper, 'aab')).toBe(true)
    expect(performance.now() - began).toBeLessThan(6000)
  })
})

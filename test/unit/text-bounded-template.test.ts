import { describe, expect, it } from 'vitest'
import { BoundedTemplate, boundedSize } from '../../gateway/text/bounded-template.js'

const CHATML = `{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<s>' }}{% endif %}{{ '<' + message['role'] + '>' + message.content | trim }}{% endfor %}{% if add_generation_prompt %}{{ '<assistant>' }}{% endif %}`

describe('boundedSize', () => {
  it.each([
    CHATML,
    `{% set system = messages[0]['content'] %}{% for m in messages %}{{ m.content.strip() }}{% endfor %}`,
    `{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}`,
  ])('bounds %s', (source) => {
    expect(boundedSize(source)).toBeGreaterThan(3)
  })

  it.each([
    ['a loop in a loop', `{% for a in messages %}{% for b in messages %}x{% endfor %}{% endfor %}`],
    ['a range', `{% for i in range(1000000000) %}x{% endfor %}`],
    ['a value that grows', `{% set x = 'a' %}{% set x = x + x %}{{ x }}`],
    ['a captured block', `{% set x %}aa{% endset %}{{ x }}`],
    ['a namespace', `{% set ns = namespace(x='') %}{% for m in messages %}{% set ns.x = ns.x + 'a' %}{% endfor %}`],
    ['a macro', `{% macro f(x) %}{{ f(x) }}{% endmacro %}{{ f(1) }}`],
    ['a product', `{{ 'a' * 1000000000 }}`],
    ['an unknown filter', `{{ messages | tojson }}`],
    ['an unknown method', `{{ 'a'.replace('a', 'aa') }}`],
    ['a computed callee', `{{ messages['pop']() }}`],
    ['no template', `{% for %}`],
  ])('does not bound %s', (_name, source) => {
    expect(boundedSize(source)).toBeUndefined()
  })
})

describe('BoundedTemplate', () => {
  const template = BoundedTemplate.from(CHATML, {}, 1000)
  const render = (content: string, count = 1) => {
    const messages = Array.from({ length: count }, () => ({ role: 'user', content }))
    return template?.render({ messages, add_generation_prompt: true }, count, content.length * count)
  }

  it('renders what is little work', () => {
    expect(render(' hi ')).toBe('<s><user>hi<assistant>')
  })

  it('leaves much work, long results and failures to the isolated renderer', () => {
    expect(render('a'.repeat(2000))).toBeUndefined()
    expect(render('a', 5000)).toBeUndefined()
    const raising = BoundedTemplate.from(`{{ raise_exception('no') }}`, {}, 1000)
    expect(raising?.render({ messages: [] }, 0, 0)).toBeUndefined()
  })
})

// Writes the JSON Schema of the WebSocket messages to the given file (default docs/websocket.schema.json).
import { writeFileSync } from 'node:fs'
import { messageJsonSchema } from '../gateway/protocols/websocket/messages.js'

const [path = 'docs/websocket.schema.json'] = process.argv.slice(2)
writeFileSync(path, `${JSON.stringify(messageJsonSchema(), null, 2)}\n`)

// A gRPC client: streams one chat. `node examples/grpc.mjs [ADDRESS] [PROMPT]`
import grpc from '@grpc/grpc-js'
import protoLoader from '@grpc/proto-loader'

const [address = '127.0.0.1:8081', prompt = 'What is the capital of France?'] = process.argv.slice(2)
const definition = protoLoader.loadSync('edgeshift/v1/gateway.proto', {
  includeDirs: [new URL('../proto', import.meta.url).pathname],
})
const { Gateway } = grpc.loadPackageDefinition(definition).edgeshift.v1
const client = new Gateway(address, grpc.credentials.createInsecure())

const call = client.ChatStream({
  model: 'chat',
  messages: [{ role: 'user', content: prompt }],
  options: { maxTokens: 32, temperature: 0 },
})
call.on('data', (event) => process.stdout.write(event.delta?.text ?? ''))
call.on('error', (error) => {
  console.error(error.message)
  process.exitCode = 1
})
call.on('status', () => {
  process.stdout.write('\n')
  client.close()
})

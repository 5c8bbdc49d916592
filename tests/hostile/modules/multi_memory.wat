(module
  (memory 1)
  (memory (export "memory") 1)
  (func (export "_start")))

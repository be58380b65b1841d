"""The contract as an OpenAPI document, made from the types that requests are read into and answers written from.

operations.py  what there is: paths, their request and answer types, their errors
shapes.py      types of answers that the service writes without a struct of their own
fields.py      what each field means, and an example of it
document.py    all of these → the document
"""

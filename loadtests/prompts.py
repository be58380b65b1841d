"""Prompts and texts of the simulated users, in English and Korean, written for this purpose."""

PROMPTS = (
    "The ferry left the harbour before dawn, and",
    "Good morrow, neighbour! What brings thee to the mill?",
    "She opened the letter twice before she believed it.",
    "Across the valley every bell began to ring",
    "KEEPER:\nWho goes there?\n\nTRAVELLER:\n",
    "영화가 시작되자마자 비가 내리기 시작했다",
    "배우들의 연기는 좋았지만 이야기가 조금",
    "처음부터 끝까지 눈을 뗄 수 없는",
    "",
)

TEXTS = (
    "The ferry left the harbour before dawn, and nobody waved.",
    "The ferry left the harbour at noon, and everybody waved.",
    "A quiet man mends clocks on the corner of our street.",
    "Rain again! We shall sleep beneath the cart tonight.",
    "오랜만에 본 따뜻한 영화, 부모님과 다시 보고 싶다.",
    "음악은 훌륭했는데 결말이 너무 갑작스러웠다.",
    "기대하지 않았는데 정말 재미있었다 👍",
)
